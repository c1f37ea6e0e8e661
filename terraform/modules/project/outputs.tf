output "project_id" {
  description = "The project's id, once its APIs can be used"
  value       = var.project_id

  depends_on = [time_sleep.apis]
}

output "number" {
  description = "The project's number, which is part of the names of Google's own accounts"
  value       = data.google_project.this.number
}
