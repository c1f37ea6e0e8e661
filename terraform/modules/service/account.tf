resource "google_service_account" "this" {
  project      = var.project_id
  account_id   = var.name
  display_name = var.description
}

# cloudtrace.traces.patch and telemetry.traces.write: both ways of sending spans.
# Logs and metrics need nothing: Cloud Run collects standard output and its own figures.
resource "google_project_iam_member" "traces" {
  project = var.project_id
  role    = "roles/cloudtrace.agent"
  member  = "serviceAccount:${google_service_account.this.email}"
}

# signBlob, only as itself.
resource "google_service_account_iam_member" "signer" {
  count = var.signs_links ? 1 : 0

  service_account_id = google_service_account.this.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = "serviceAccount:${google_service_account.this.email}"
}

# Who deploys a revision must be allowed to run things as its account.
resource "google_service_account_iam_member" "deployer" {
  for_each = var.deployers

  service_account_id = google_service_account.this.name
  role               = "roles/iam.serviceAccountUser"
  member             = "serviceAccount:${each.value}"
}
