resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:The images hold public code; Google's own encryption is enough
  project       = var.project_id
  location      = var.region
  repository_id = var.registry_name
  description   = "Images of the API and the worker"
  format        = "DOCKER"

  # No docker_config: tags may move by default, releases name digests, and the provider does not send
  # the default when it creates the registry, so that each later plan would change it.

  cleanup_policy_dry_run = false

  # What this keeps, the next one does not delete.
  cleanup_policies {
    id     = "keep-recent"
    action = "KEEP"

    most_recent_versions {
      keep_count = var.keep_versions
    }
  }

  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"

    condition {
      tag_state  = "ANY"
      older_than = "${var.delete_after_days * 24 * 3600}s"
    }
  }
}

resource "google_artifact_registry_repository_iam_member" "deployer" {
  count = local.github

  project    = var.project_id
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = "serviceAccount:${google_service_account.deployer[0].email}"
}
