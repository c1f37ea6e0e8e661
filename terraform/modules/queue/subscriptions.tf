# One for each channel: what is slow or fails on one delays nothing on another.
resource "google_pubsub_subscription" "channel" {
  for_each = var.policy.channels

  project = var.project_id
  name    = "${var.names.prefix}-${each.key}-push"
  topic   = google_pubsub_topic.channel[each.key].id

  # Also the time limit of one push.
  ack_deadline_seconds       = each.value.ack_deadline
  message_retention_duration = "${each.value.retention}s"

  push_config {
    push_endpoint = "${var.worker_urls[each.value.service]}${each.value.path}"

    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = var.push_audience
    }
  }

  retry_policy {
    minimum_backoff = "${each.value.min_backoff}s"
    maximum_backoff = "${each.value.max_backoff}s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead_letters.id
    max_delivery_attempts = each.value.attempts
  }

  # An idle subscription would be deleted after 31 days.
  expiration_policy {
    ttl = ""
  }

  depends_on = [google_service_account_iam_member.push_token]
}

# Without it Pub/Sub does not count deliveries, and nothing ever becomes a dead letter.
resource "google_pubsub_subscription_iam_member" "agent" {
  for_each = var.policy.channels

  project      = var.project_id
  subscription = google_pubsub_subscription.channel[each.key].name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}
