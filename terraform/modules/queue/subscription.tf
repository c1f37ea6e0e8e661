resource "google_pubsub_subscription" "images" {
  project = var.project_id
  name    = var.names.subscription
  topic   = google_pubsub_topic.images.id

  # Also the time limit of one push.
  ack_deadline_seconds       = var.policy.ack_deadline
  message_retention_duration = "${var.policy.retention}s"

  push_config {
    push_endpoint = "${var.worker_url}${var.policy.classify_path}"

    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = var.push_audience
    }
  }

  retry_policy {
    minimum_backoff = "${var.policy.min_backoff}s"
    maximum_backoff = "${var.policy.max_backoff}s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead_letters.id
    max_delivery_attempts = var.policy.attempts
  }

  # An idle subscription would be deleted after 31 days.
  expiration_policy {
    ttl = ""
  }

  depends_on = [google_service_account_iam_member.push_token]
}

# Without it Pub/Sub does not count deliveries, and nothing ever becomes a dead letter.
resource "google_pubsub_subscription_iam_member" "agent" {
  project      = var.project_id
  subscription = google_pubsub_subscription.images.name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}
