mock_provider "google" {}

variables {
  project_id = "example-project"
  name       = "glimpse"
  location   = "europe-west1"
  accounts   = { api = "api@example.iam.gserviceaccount.com" }
}

run "protected" {
  command = plan

  assert {
    condition     = google_firestore_database.this.type == "DATASTORE_MODE" && google_firestore_database.this.delete_protection_state == "DELETE_PROTECTION_ENABLED"
    error_message = "Datastore mode, protected."
  }

  assert {
    condition     = google_firestore_database.this.deletion_policy == "ABANDON"
    error_message = "A destroy leaves a protected database alone."
  }

  assert {
    condition     = google_project_iam_member.user["api"].condition[0].expression == "resource.name == \"projects/example-project/databases/glimpse\""
    error_message = "The role ends at this database."
  }
}

run "unprotected" {
  command = plan

  variables {
    delete_protection = false
  }

  assert {
    condition     = google_firestore_database.this.deletion_policy == "DELETE"
    error_message = "Without protection a destroy deletes it."
  }
}
