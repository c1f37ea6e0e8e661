output "database" {
  description = "The database's name, once the services may use it"
  value       = google_firestore_database.this.name

  depends_on = [google_project_iam_member.user]
}
