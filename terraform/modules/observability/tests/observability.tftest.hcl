mock_provider "google" {}

variables {
  project_id               = "example-project"
  prefix                   = "glimpse"
  api_service              = "glimpse-api"
  worker_service           = "glimpse-worker"
  subscription             = "glimpse-images-push"
  dead_letter_subscription = "glimpse-dead-letters-push"
  scheduler_job            = "glimpse-reconcile"
  alert_email              = "ops@example.com"
  runbook_url              = "https://example.com/operations.md"
}

run "alerts" {
  command = plan

  assert {
    condition     = google_monitoring_alert_policy.this["dead_letters"].conditions[0].condition_threshold[0].threshold_value == 0
    error_message = "One dead letter is an alert."
  }

  assert {
    condition     = alltrue([for alert in google_monitoring_alert_policy.this : startswith(alert.documentation[0].content, "What to do: https://example.com/operations.md#alert-")])
    error_message = "Every alert leads to its runbook."
  }

  assert {
    condition     = length(google_monitoring_notification_channel.email) == 1
    error_message = "Somebody is told."
  }
}

run "dashboard_is_json" {
  command = plan

  assert {
    condition     = length(jsondecode(google_monitoring_dashboard.this.dashboard_json).mosaicLayout.tiles) == 12
    error_message = "Twelve charts: requests, queue, worker, results, three each."
  }
}
