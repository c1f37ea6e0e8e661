mock_provider "google" {}

variables {
  project_id     = "example-project"
  prefix         = "glimpse"
  api_service    = "glimpse-api"
  worker_service = "glimpse-worker"
  subscriptions = {
    images-high   = "glimpse-images-high-push"
    images-normal = "glimpse-images-normal-push"
    images-low    = "glimpse-images-low-push"
    jobs          = "glimpse-jobs-push"
    notifications = "glimpse-notifications-push"
  }
  dead_letter_subscription = "glimpse-dead-letters-push"
  scheduler_jobs           = ["glimpse-reconcile", "glimpse-schedule"]
  alert_email              = "ops@example.com"
  runbook_url              = "https://example.com/alerts.md"
}

run "alerts" {
  command = plan

  assert {
    condition     = google_monitoring_alert_policy.this["dead_letters"].conditions[0].condition_threshold[0].threshold_value == 0
    error_message = "One dead letter is an alert."
  }

  assert {
    condition     = { for name, alert in google_monitoring_alert_policy.this : name => alert.conditions[0].condition_threshold[0].threshold_value if startswith(name, "oldest_message_") } == { oldest_message_images-high = 300, oldest_message_images-normal = 3600, oldest_message_images-low = 21600, oldest_message_jobs = 600, oldest_message_notifications = 25200 }
    error_message = "Every channel has an alert, the urgent ones a strict one."
  }

  assert {
    condition     = strcontains(google_logging_metric.scheduler_failed.filter, "job_id=(\"glimpse-reconcile\" OR \"glimpse-schedule\")")
    error_message = "Both scheduled calls are watched."
  }

  assert {
    condition     = alltrue([for alert in google_monitoring_alert_policy.this : startswith(alert.documentation[0].content, "What to do: https://example.com/alerts.md#alert-")])
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
    condition     = length(jsondecode(google_monitoring_dashboard.this.dashboard_json).mosaicLayout.tiles) == 15
    error_message = "Fifteen charts: requests, queue, worker, results, jobs, three each."
  }
}

run "one_threshold_of_one_channel" {
  command = plan
  variables {
    thresholds = { oldest_message_seconds = { images-high = 60 } }
  }

  assert {
    condition     = google_monitoring_alert_policy.this["oldest_message_images-high"].conditions[0].condition_threshold[0].threshold_value == 60 && google_monitoring_alert_policy.this["oldest_message_jobs"].conditions[0].condition_threshold[0].threshold_value == 600
    error_message = "The others keep theirs."
  }
}

run "no_such_channel" {
  command = plan
  variables {
    thresholds = { oldest_message_seconds = { images = 60 } }
  }
  expect_failures = [var.thresholds]
}
