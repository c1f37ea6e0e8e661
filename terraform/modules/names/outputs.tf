output "api" {
  description = "Cloud Run service and account of the API"
  value       = "${var.name}-api"
}

output "worker" {
  description = "Cloud Run service and account of the worker"
  value       = "${var.name}-worker"
}

output "push" {
  description = "Account that calls the worker"
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

output "registry" {
  description = "Artifact Registry repository of the images of API and worker"
  value       = var.name
}

output "prefix" {
  description = "What other names begin with, those of topics and subscriptions among them"
  value       = var.name
}

output "push_audience" {
  description = "Audience of the tokens that the worker accepts; an address that leads nowhere, known before the service has one"
  value       = "https://worker.${var.name}.${var.project_id}.internal"
}
