output "registry" {
  description = "Registry that images are pushed to, as host/project/repository"
  value       = "${google_artifact_registry_repository.images.location}-docker.pkg.dev/${var.project_id}/${google_artifact_registry_repository.images.repository_id}"
}

output "deployers" {
  description = "E-mail of the account that GitHub deploys as, by the name github; empty without a repository"
  value       = { for account in google_service_account.deployer : "github" => account.email }
}

output "workload_identity_provider" {
  description = "Full name of the provider that GitHub presents its token to; null without a repository"
  value       = one(google_iam_workload_identity_pool_provider.github[*].name)
}
