output "project_id" {
  description = "The project's id, once its APIs are enabled"
  value       = var.project_id

  depends_on = [google_project_service.this]
}

output "number" {
  description = "The project's number, of which the names of Google's own accounts are made"
  value       = data.google_project.this.number
}
