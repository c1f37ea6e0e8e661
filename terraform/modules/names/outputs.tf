output "api" {
  description = "Cloud Run service and account of the API"
  value       = "${var.name}-api"
}

output "workers" {
  description = "Cloud Run services and accounts of the worker, by service"
  value       = { for service in ["interactive", "batch", "notify"] : service => "${var.name}-${service}" }
}

output "push" {
  description = "Account that calls the workers"
  value       = "${var.name}-push"
}

output "deployer" {
  description = "Account that GitHub deploys as"
  value       = "${var.name}-deploy"
}

output "bucket" {
  description = "Bucket of the images; unique in the world by the project's id"
  value       = "${var.project_id}-${var.name}-images"
}

output "database" {
  description = "Datastore database of the records"
  value       = var.name
}

output "keys_database" {
  description = "Datastore database of the API keys"
  value       = "${var.name}-keys"
}

output "registry" {
  description = "Artifact Registry repository of the images of API and worker"
  value       = var.name
}

output "prefix" {
  description = "Prefix of the other names, also of topics and subscriptions"
  value       = var.name
}

output "push_audience" {
  description = "Audience of the tokens that every worker accepts: a fixed name that does not resolve, known before the services have addresses"
  value       = "https://worker.${var.name}.${var.project_id}.internal"
}
