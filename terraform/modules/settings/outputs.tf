output "api" {
  description = "Environment of the API"
  value       = merge(local.common, var.email == null ? {} : local.email, local.api, var.extra)
}

output "worker" {
  description = "Environment of the worker"
  value       = merge(local.common, var.email == null ? {} : local.email, local.worker, var.extra)
}
