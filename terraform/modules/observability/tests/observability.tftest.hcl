mock_provider "google" {}
mock_provider "time" {}

variables {
  project_id      = "example-project"
  prefix          = "glimpse"
  api_service     = "glimpse-api"
  worker_services = ["glimpse-interactive", "glimpse-batch", "glimpse-notify"]
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
    condition     = { for name, alert in google_monitoring_alert_policy.this : name => alert.conditions[0].condition_threshold[0].threshold_value if startswith(name, "oldest_message_") } == { oldest_message_images-high = 300, oldest_message_images-normal = 3600, oldest_message_images-low = 21600, oldest_message_jobs = 600, oldest_message_notifications = 61200 }
    error_message = "Every channel has an alert, the urgent ones a strict one."
  }

  assert {
    condition     = strcontains(google_logging_metric.scheduler_failed.filter, "job_id=(\"glimpse-reconcile\" OR \"glimpse-schedule\")")
    error_message = "The alert covers both scheduled calls."
  }

  assert {
    condition     = alltrue([for alert in google_monitoring_alert_policy.this : startswith(alert.documentation[0].content, "What to do: https://example.com/alerts.md#alert-")])
    error_message = "Every alert leads to its runbook."
  }

  assert {
    condition     = length(google_monitoring_notification_channel.email) == 1
    error_message = "The address gets alerts."
  }
}

run "dashboard_is_json" {
  command = plan

  assert {
    condition     = length(jsondecode(google_monitoring_dashboard.this.dashboard_json).mosaicLayout.tiles) == 15
    error_message = "Fifteen charts: requests, queue, worker, results, jobs, three each."
  }
}

run "zeros_and_empty_values_are_left_out" {
  command = plan

  # Monitoring does not return them, so each would be a change in every plan.
  assert {
    condition = alltrue(flatten([
      for tile in jsondecode(google_monitoring_dashboard.this.dashboard_json).mosaicLayout.tiles : [
        lookup(tile, "xPos", 1) != 0,
        lookup(tile, "yPos", 1) != 0,
        [for set in tile.widget.xyChart.dataSets : lookup(set, "legendTemplate", "x") != ""],
        [for set in tile.widget.xyChart.dataSets : length(lookup(set.timeSeriesQuery.timeSeriesFilter.aggregation, "groupByFields", ["x"])) > 0],
      ]
    ]))
    error_message = "A zero or an empty value is in the dashboard."
  }
}

run "all_workers_are_watched" {
  command = plan

  assert {
    condition     = strcontains(google_logging_metric.counted["classified"].filter, "service_name=(\"glimpse-interactive\" OR \"glimpse-batch\" OR \"glimpse-notify\")")
    error_message = "Logs of every worker count."
  }

  assert {
    condition     = strcontains(google_monitoring_alert_policy.this["dead_letters_undelivered"].conditions[0].condition_threshold[0].filter, "glimpse-dead-letters-push")
    error_message = "An alert watches the dead letters' own subscription."
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
