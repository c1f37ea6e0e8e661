locals {
  both = merge(local.common, var.email == null ? {} : local.email, var.model_uri == null ? {} : local.model)
}

output "api" {
  description = "Environment of the API"
  value       = merge(local.both, length(var.import_buckets) == 0 ? {} : local.imports, local.api, var.extra)
}

output "worker" {
  description = "Environment of the worker"
  value       = merge(local.both, length(var.extra_model_uris) == 0 ? {} : local.models, local.worker, var.extra)
}
