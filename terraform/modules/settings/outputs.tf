output "api" {
  description = "Environment of the API"
  value       = merge(local.common, local.api, var.extra)
}

output "worker" {
  description = "Environment of the worker"
  value       = merge(local.common, local.worker, var.extra)
}
