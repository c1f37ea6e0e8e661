output "api" {
  description = "Environment of the API"
  value       = merge(local.common, var.email == null ? {} : local.email, length(var.import_buckets) == 0 ? {} : local.imports, local.api, var.extra)
}

output "worker" {
  description = "Environment of the worker"
  value       = merge(local.common, var.email == null ? {} : local.email, local.worker, var.extra)
}
