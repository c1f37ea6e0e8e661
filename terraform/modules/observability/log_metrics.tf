# Metrics made of the services' own log lines. A test looks for each message in the code.
locals {
  api_lines = join(" AND ", [
    "resource.type=\"cloud_run_revision\"",
    "resource.labels.service_name=\"${var.api_service}\"",
  ])
  worker_lines = join(" AND ", [
    "resource.type=\"cloud_run_revision\"",
    "resource.labels.service_name=(${join(" OR ", [for name in var.worker_services : "\"${name}\""])})",
  ])

  # The other code, upload_lost, is a client that disconnected.
  worker_expired_lines = "${local.worker_lines} AND jsonPayload.code=\"expired\""

  # Lines that are counted, by the metric's name. label names a field to count by.
  counted = {
    accepted               = { lines = local.api_lines, message = "accepted", label = null, means = "Uploads whose image is stored and whose message is published" }
    classified             = { lines = local.worker_lines, message = "classified", label = null, means = "Images that were classified" }
    refused                = { lines = local.worker_lines, message = "image refused", label = "code", means = "Images that cannot be classified" }
    dead_letters           = { lines = local.worker_lines, message = "dead letter", label = "code", means = "Messages that failed after their last delivery" }
    unreadable             = { lines = local.worker_lines, message = "dead letter unreadable", label = null, means = "Dead letters that are no message of Glimpse" }
    lease_lost             = { lines = local.worker_lines, message = "lease lost", label = null, means = "Results refused because another worker had claimed the image" }
    republished            = { lines = local.worker_lines, message = "record republished", label = null, means = "Stale records whose message was published again" }
    jobs_accepted          = { lines = local.api_lines, message = "job accepted", label = null, means = "Jobs whose images are stored" }
    jobs_completed         = { lines = local.worker_lines, message = "job completed", label = null, means = "Jobs without open items" }
    jobs_ended             = { lines = local.worker_lines, message = "job ended", label = "status", means = "Jobs that the worker ended before their completion" }
    jobs_cancelled         = { lines = local.api_lines, message = "job ended", label = null, means = "Jobs that their owners cancelled" }
    webhooks_delivered     = { lines = local.worker_lines, message = "webhook delivered", label = null, means = "Notifications that a receiver accepted" }
    webhooks_not_delivered = { lines = local.worker_lines, message = "webhook not delivered", label = null, means = "Notifications that a receiver did not accept" }
    emails_sent            = { lines = local.worker_lines, message = "e-mail sent", label = null, means = "Notifications that a mail server accepted" }
    expired                = { lines = local.worker_expired_lines, message = "record ended", label = null, means = "Records that failed because their retention had ended" }
  }

  # Lines whose field `milliseconds` is measured, by the metric's name.
  measured = {
    classification_time = {
      lines = "${local.worker_lines} AND jsonPayload.message=\"classified\""
      means = "Milliseconds from the message's arrival at the worker to the stored result"
    }
    # Cloud Run's own latencies include streams of live updates, which last up to an hour. A batch takes as long
    # as its sender.
    upload_time = {
      lines = "${local.api_lines} AND jsonPayload.message=\"request\" AND jsonPayload.method=\"POST\" AND NOT jsonPayload.path:\"/jobs/\""
      means = "Milliseconds from the beginning of an image's upload to the answer"
    }
  }
}

resource "google_logging_metric" "counted" {
  for_each = local.counted

  project     = var.project_id
  name        = "${var.prefix}/${each.key}"
  description = each.value.means
  filter      = "${each.value.lines} AND jsonPayload.message=\"${each.value.message}\""

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"

    dynamic "labels" {
      for_each = each.value.label == null ? [] : [each.value.label]
      content {
        key        = labels.value
        value_type = "STRING"
      }
    }
  }

  label_extractors = (
    each.value.label == null ? {} : { (each.value.label) = "EXTRACT(jsonPayload.${each.value.label})" }
  )
}

resource "google_logging_metric" "measured" {
  for_each = local.measured

  project         = var.project_id
  name            = "${var.prefix}/${each.key}"
  description     = each.value.means
  filter          = each.value.lines
  value_extractor = "EXTRACT(jsonPayload.milliseconds)"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "DISTRIBUTION"
    unit        = "ms"
  }

  # From 1 ms to 100 s, each a third wider than the one before.
  bucket_options {
    exponential_buckets {
      num_finite_buckets = 40
      growth_factor      = 1.333
      scale              = 1
    }
  }
}

# The scheduler reports on itself; its lines are Google's.
resource "google_logging_metric" "scheduler_failed" {
  project     = var.project_id
  name        = "${var.prefix}/scheduler_failed"
  description = "Scheduled calls of the worker that failed"
  filter = join(" AND ", [
    "resource.type=\"cloud_scheduler_job\"",
    "resource.labels.job_id=(${join(" OR ", [for name in var.scheduler_jobs : "\"${name}\""])})",
    "severity>=ERROR",
  ])

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"
  }
}
