locals {
  both = merge(
    local.common,
    var.email == null ? {} : local.email,
    var.model_uri == null ? {} : local.model,
    length(var.extra_model_uris) == 0 ? {} : local.models,
  )
}

output "api" {
  description = "Environment of the API"
  value       = merge(local.both, length(var.import_buckets) == 0 ? {} : local.imports, local.api, var.extra)
}

output "workers" {
  description = "Environment of each worker, by service"
  value = {
    for service, cpus in var.worker_cpus : service => merge(
      local.both,
      local.worker,
      { WORKER_CONCURRENCY = tostring(cpus) }, # a container may see more cores than it may use
      var.extra,
    )
  }
}
