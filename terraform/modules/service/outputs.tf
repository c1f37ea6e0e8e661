output "name" {
  description = "Name of the service"
  value       = google_cloud_run_v2_service.this.name
}

output "url" {
  description = "Its run.app address"
  value       = google_cloud_run_v2_service.this.uri
}

output "account" {
  description = "E-mail of its account"
  value       = google_service_account.this.email
}

output "secrets" {
  description = "Names of the settings that it reads from Secret Manager"
  value       = toset(keys(var.secrets))
}
