locals {
  apis = setunion(var.extra_apis, [
    "artifactregistry.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "cloudscheduler.googleapis.com",
    "cloudtrace.googleapis.com",
    "datastore.googleapis.com",
    "firestore.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "pubsub.googleapis.com",
    "run.googleapis.com",
    "secretmanager.googleapis.com",
    "storage.googleapis.com",
    "sts.googleapis.com",
    "telemetry.googleapis.com",
  ])
}

resource "google_project_service" "this" {
  for_each = local.apis

  project = var.project_id
  service = each.key

  # Others may use them too.
  disable_on_destroy = false
}

# Google answers 403 SERVICE_DISABLED for a while after an API is enabled.
resource "time_sleep" "apis" {
  create_duration = "${var.propagation_seconds}s"
  triggers        = { apis = join(",", sort(local.apis)) }

  depends_on = [google_project_service.this]
}

# No depends_on: it would make the number unknown in each plan that enables an API, and replace every
# grant of Google's own accounts.
data "google_project" "this" {
  project_id = var.project_id
}
