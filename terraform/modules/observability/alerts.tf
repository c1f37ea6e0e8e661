locals {
  # Of one channel, of some, of all that are published to, of the dead letters.
  subscription_is = {
    for channel, name in var.subscriptions :
    channel => "resource.type=\"pubsub_subscription\" AND resource.labels.subscription_id=\"${name}\""
  }
  work_is     = "resource.type=\"pubsub_subscription\" AND resource.labels.subscription_id=one_of(${join(", ", [for channel, name in var.subscriptions : "\"${name}\"" if channel != "notifications"])})"
  messages_to = "resource.type=\"pubsub_subscription\" AND resource.labels.subscription_id=one_of(${join(", ", [for name in values(var.subscriptions) : "\"${name}\""])})"
  letters_are = "resource.type=\"pubsub_subscription\" AND resource.labels.subscription_id=\"${var.dead_letter_subscription}\""

  api_is      = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.api_service}\""
  worker_is   = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=one_of(${join(", ", [for name in var.worker_services : "\"${name}\""])})"
  pushes      = "metric.type=\"pubsub.googleapis.com/subscription/push_request_count\""
  requests    = "metric.type=\"run.googleapis.com/request_count\""
  user_metric = "metric.type=\"logging.googleapis.com/user/${var.prefix}"

  # filter over denominator, aligned over window and then added up (or, for percentiles, the worst),
  # above threshold for as long as duration. runbook is a heading in docs/operations/alerts.md.
  alerts = {
    dead_letters = {
      title       = "Dead letters"
      severity    = "ERROR"
      filter      = "${local.work_is} AND metric.type=\"pubsub.googleapis.com/subscription/dead_letter_message_count\""
      denominator = null
      aligner     = "ALIGN_DELTA"
      reducer     = "REDUCE_SUM"
      window      = "300s"
      duration    = "0s"
      threshold   = 0
      runbook     = "alert-dead-letters"
    }
    # The owner of a receiver fixes it; if many receivers fail, the cause may be the worker.
    notifications = {
      title       = "Notifications are given up"
      severity    = "WARNING"
      filter      = "${local.subscription_is["notifications"]} AND metric.type=\"pubsub.googleapis.com/subscription/dead_letter_message_count\""
      denominator = null
      aligner     = "ALIGN_DELTA"
      reducer     = "REDUCE_SUM"
      window      = "3600s"
      duration    = "0s"
      threshold   = var.thresholds.notifications_given_up
      runbook     = "alert-notifications"
    }
    api_errors = {
      title       = "API answers 5xx"
      severity    = "CRITICAL"
      filter      = "${local.api_is} AND ${local.requests} AND metric.labels.response_code_class=\"5xx\""
      denominator = "${local.api_is} AND ${local.requests}"
      aligner     = "ALIGN_DELTA"
      reducer     = "REDUCE_SUM"
      window      = "300s"
      duration    = "300s"
      threshold   = var.thresholds.api_error_ratio
      runbook     = "alert-api-errors"
    }
    api_latency = {
      title       = "API is slow"
      severity    = "WARNING"
      filter      = "${local.api_is} AND ${local.user_metric}/upload_time\""
      denominator = null
      aligner     = "ALIGN_PERCENTILE_99"
      reducer     = "REDUCE_MAX"
      window      = "300s"
      duration    = "600s"
      threshold   = var.thresholds.api_p99_seconds * 1000
      runbook     = "alert-api-latency"
    }
    worker_errors = {
      title       = "Worker refuses messages"
      severity    = "ERROR"
      filter      = "${local.work_is} AND ${local.pushes} AND metric.labels.response_class!=\"ack\""
      denominator = "${local.work_is} AND ${local.pushes}"
      aligner     = "ALIGN_DELTA"
      reducer     = "REDUCE_SUM"
      window      = "300s"
      duration    = "600s"
      threshold   = var.thresholds.worker_error_ratio
      runbook     = "alert-worker-errors"
    }
    expired = {
      title       = "Images were never classified"
      severity    = "ERROR"
      filter      = "${local.worker_is} AND ${local.user_metric}/expired\""
      denominator = null
      aligner     = "ALIGN_DELTA"
      reducer     = "REDUCE_SUM"
      window      = "300s"
      duration    = "0s"
      threshold   = 0
      runbook     = "alert-expired-images"
    }
    scheduler = {
      title       = "Scheduled calls of the worker fail"
      severity    = "WARNING"
      filter      = "resource.type=\"cloud_scheduler_job\" AND ${local.user_metric}/scheduler_failed\""
      denominator = null
      aligner     = "ALIGN_DELTA"
      reducer     = "REDUCE_SUM"
      window      = "600s"
      duration    = "600s"
      threshold   = 0
      runbook     = "alert-scheduler"
    }
  }

  # One for each channel: what is urgent for one is usual for another. That of notifications is more
  # than all deliveries to a receiver that is down take together.
  oldest_message_seconds = merge({
    images-high   = 300
    images-normal = 3600
    images-low    = 21600
    jobs          = 600
    notifications = 61200
  }, var.thresholds.oldest_message_seconds)
  oldest_message = {
    severity    = "ERROR"
    denominator = null
    aligner     = "ALIGN_MAX"
    reducer     = "REDUCE_MAX"
    window      = "60s"
    duration    = "300s"
    runbook     = "alert-oldest-message"
  }
  # Of a message that the dead-letter handler does not take: nothing else reports it.
  undelivered_letters = {
    dead_letters_undelivered = merge(local.oldest_message, {
      title     = "Dead letters are not recorded"
      filter    = "${local.letters_are} AND metric.type=\"pubsub.googleapis.com/subscription/oldest_unacked_message_age\""
      threshold = var.thresholds.dead_letter_seconds
      runbook   = "alert-dead-letters-undelivered"
    })
  }
  backlogs = {
    for channel, filter in local.subscription_is :
    "oldest_message_${channel}" => merge(local.oldest_message, {
      title     = "Oldest message of ${channel} waits too long"
      filter    = "${filter} AND metric.type=\"pubsub.googleapis.com/subscription/oldest_unacked_message_age\""
      threshold = local.oldest_message_seconds[channel]
    })
  }
}

locals {
  policies = merge(local.alerts, local.undelivered_letters, local.backlogs)
}

# A policy can name only metrics that exist, and a new metric may take ten minutes until it does.
resource "time_sleep" "metrics" {
  create_duration = "${var.propagation_seconds}s"
  triggers        = { metrics = join(",", concat(keys(local.counted), keys(local.measured), ["scheduler_failed"])) }

  depends_on = [
    google_logging_metric.counted,
    google_logging_metric.measured,
    google_logging_metric.scheduler_failed,
  ]
}

resource "google_monitoring_alert_policy" "this" {
  for_each = local.policies

  project               = var.project_id
  display_name          = "${var.prefix}: ${each.value.title}"
  severity              = each.value.severity
  combiner              = "OR"
  notification_channels = local.channels

  conditions {
    display_name = each.value.title

    condition_threshold {
      filter             = each.value.filter
      denominator_filter = each.value.denominator
      comparison         = "COMPARISON_GT"
      threshold_value    = each.value.threshold
      duration           = each.value.duration

      aggregations {
        alignment_period     = each.value.window
        per_series_aligner   = each.value.aligner
        cross_series_reducer = each.value.reducer
      }

      dynamic "denominator_aggregations" {
        for_each = each.value.denominator == null ? [] : [each.value.aligner]
        content {
          alignment_period     = each.value.window
          per_series_aligner   = denominator_aggregations.value
          cross_series_reducer = each.value.reducer
        }
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    subject   = "${var.prefix}: ${each.value.title}"
    content = (
      var.runbook_url == null
      ? "What to do: docs/operations/alerts.md, section ${each.value.runbook}."
      : "What to do: ${var.runbook_url}#${each.value.runbook}"
    )
  }

  alert_strategy {
    auto_close = "86400s"
  }

  depends_on = [time_sleep.metrics]
}
