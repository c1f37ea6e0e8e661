output "api_url" {
  description = "Address of the API"
  value       = var.domain == null ? module.api.url : local.public_url
}

output "dns" {
  description = "DNS record that the domain needs; null without a domain"
  value       = var.domain == null ? null : "${var.domain}. A ${module.edge[0].address}"
}

output "dashboard" {
  description = "Address of the dashboard"
  value       = module.observability.dashboard
}

output "bucket" {
  description = "Bucket of the images"
  value       = module.images.bucket
}

output "database" {
  description = "Datastore database of the records"
  value       = module.records.database
}

output "keys_database" {
  description = "Datastore database of the API keys"
  value       = module.keys.database
}

output "dead_letter_subscription" {
  description = "Subscription of the dead letters"
  value       = module.queue.dead_letter_subscription
}

output "settings" {
  description = "The API's environment without its secrets, for commands that an operator runs"
  value       = module.settings.api
}

# --- For GitHub: repository variables of the deploy workflow -------------------------------------
output "GCP_PROJECT" {
  description = "Google Cloud project"
  value       = var.project_id
}

output "GCP_REGION" {
  description = "Region of the services"
  value       = var.region
}

output "GCP_WORKLOAD_IDENTITY_PROVIDER" {
  description = "Provider that GitHub presents its token to; null without github_repository"
  value       = module.delivery.workload_identity_provider
}

output "GCP_DEPLOYER" {
  description = "E-mail of the account that GitHub deploys as; null without github_repository"
  value       = lookup(module.delivery.deployers, "github", null)
}

output "GCP_REGISTRY" {
  description = "Registry that images are pushed to, as host/project/repository"
  value       = module.delivery.registry
}

output "API_SERVICE" {
  description = "Cloud Run service of the API"
  value       = module.api.name
}

output "WORKER_SERVICES" {
  description = "Cloud Run services of the worker, separated by commas, in the order of a release"
  value       = join(",", local.worker_services)
}

output "API_URL" {
  description = "Address at which a release tests an API that only the load balancer reaches; null if the API has its own address"
  value       = local.behind_load_balancer ? local.public_url : null
}
