# Periodic calls to the worker, at the service that also gets the dead letters.
locals {
  calls = {
    reconcile = {
      path     = var.policy.reconcile_path
      schedule = var.policy.reconcile_schedule
      means    = "Republishes or fails stale records"
    }
    schedule = {
      path     = var.policy.schedule_path
      schedule = var.policy.schedule
      means    = "Starts, repairs, ends and deletes jobs whose time has come"
    }
  }
}

resource "google_cloud_scheduler_job" "call" {
  for_each = local.calls

  project     = var.project_id
  region      = var.region
  name        = "${var.names.prefix}-${each.key}"
  description = each.value.means

  schedule         = each.value.schedule
  time_zone        = "Etc/UTC"
  attempt_deadline = "${var.policy.dead_letters.ack_deadline}s"

  retry_config {
    retry_count          = 1
    min_backoff_duration = "${var.policy.dead_letters.min_backoff}s"
  }

  http_target {
    http_method = "POST"
    uri         = "${var.worker_urls[var.policy.dead_letters.service]}${each.value.path}"

    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = var.push_audience
    }
  }
}
