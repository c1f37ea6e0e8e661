resource "google_cloud_scheduler_job" "reconciler" {
  project     = var.project_id
  region      = var.region
  name        = "${var.names.prefix}-reconcile"
  description = "Publishes again, or ends, what stands still"

  schedule         = var.policy.reconcile_schedule
  time_zone        = "Etc/UTC"
  attempt_deadline = "${var.policy.ack_deadline}s"

  retry_config {
    retry_count          = 1
    min_backoff_duration = "${var.policy.min_backoff}s"
  }

  http_target {
    http_method = "POST"
    uri         = "${var.worker_url}${var.policy.reconcile_path}"

    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = var.push_audience
    }
  }
}
