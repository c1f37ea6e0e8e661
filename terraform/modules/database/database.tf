resource "google_firestore_database" "this" {
  project     = var.project_id
  name        = var.name
  location_id = var.location
  type        = "DATASTORE_MODE"

  # A conflict sends the later one back at once, which suits short transactions on one entity.
  concurrency_mode            = "OPTIMISTIC"
  app_engine_integration_mode = "DISABLED"

  point_in_time_recovery_enablement = (
    var.point_in_time_recovery ? "POINT_IN_TIME_RECOVERY_ENABLED" : "POINT_IN_TIME_RECOVERY_DISABLED"
  )
  delete_protection_state = (
    var.delete_protection ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  )
  # Without protection, destroy deletes the database; with it, it is left alone.
  deletion_policy = var.delete_protection ? "ABANDON" : "DELETE"
}

# Datastore has no roles on a database: a condition holds the project's role to this one.
resource "google_project_iam_member" "user" {
  for_each = var.accounts

  project = var.project_id
  role    = "roles/datastore.user"
  member  = "serviceAccount:${each.value}"

  condition {
    title       = "${var.name}-only"
    description = "Entities of the database ${var.name}"
    expression  = "resource.name == \"projects/${var.project_id}/databases/${var.name}\""
  }
}
