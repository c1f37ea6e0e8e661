# Metrics made of the services' own log lines. A test looks for each message in the code.
locals {
  api_lines = join(" AND ", [
    "resource.type=\"cloud_run_revision\"",
    "resource.labels.service_name=\"${var.api_service}\"",
  ])
  worker_lines = join(" AND ", [
    "resource.type=\"cloud_run_revision\"",
    "resource.labels.service_name=\"${var.worker_service}\"",
  ])

  # The other code, upload_lost, is a client that went away.
  worker_expired_lines = "${local.worker_lines} AND jsonPayload.code=\"expired\""

  # Lines that are counted, by the metric's name. label names a field to count by.
  counted = {
    accepted     = { lines = local.api_lines, message = "accepted", label = null, means = "Uploads whose image is stored and whose message is published" }
    classified   = { lines = local.worker_lines, message = "classified", label = null, means = "Images that got labels" }
    refused      = { lines = local.worker_lines, message = "image refused", label = "code", means = "Images that cannot be classified" }
    dead_letters = { lines = local.worker_lines, message = "dead letter", label = "code", means = "Images given up after their last delivery" }
    unreadable   = { lines = local.worker_lines, message = "dead letter unreadable", label = null, means = "Dead letters that name no image" }
    lease_lost   = { lines = local.worker_lines, message = "lease lost", label = null, means = "Results refused because another worker had taken over" }
    republished  = { lines = local.worker_lines, message = "record republished", label = null, means = "Records that stood still and were published again" }
    expired      = { lines = local.worker_expired_lines, message = "record ended", label = null, means = "Records given up after the retention" }
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

resource "google_logging_metric" "classification_time" {
  project         = var.project_id
  name            = "${var.prefix}/classification_time"
  description     = "Milliseconds from the message's arrival at the worker to the stored result"
  filter          = "${local.worker_lines} AND jsonPayload.message=\"classified\""
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
resource "google_logging_metric" "reconciler_failed" {
  project     = var.project_id
  name        = "${var.prefix}/reconciler_failed"
  description = "Calls of the reconciler that failed"
  filter = join(" AND ", [
    "resource.type=\"cloud_scheduler_job\"",
    "resource.labels.job_id=\"${var.scheduler_job}\"",
    "severity>=ERROR",
  ])

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"
  }
}
