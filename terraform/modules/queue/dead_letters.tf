resource "google_pubsub_topic" "dead_letters" {
  #checkov:skip=CKV_GCP_83:Messages hold names and no image; Google's own encryption is enough
  project = var.project_id
  name    = local.dead_letters

  # So that letters the worker acknowledged can be delivered to it again, by seeking back.
  message_retention_duration = "${var.policy.dead_letters.retention}s"

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }
}

resource "google_pubsub_topic_iam_member" "agent" {
  project = var.project_id
  topic   = google_pubsub_topic.dead_letters.name
  role    = "roles/pubsub.publisher"
  member  = local.pubsub_agent
}

# A topic without a subscription loses what is sent to it.
resource "google_pubsub_subscription" "dead_letters" {
  project = var.project_id
  name    = "${local.dead_letters}-push"
  topic   = google_pubsub_topic.dead_letters.id

  ack_deadline_seconds       = var.policy.dead_letters.ack_deadline
  message_retention_duration = "${var.policy.dead_letters.retention}s"

  push_config {
    push_endpoint = "${var.worker_urls[var.policy.dead_letters.service]}${var.policy.dead_letters.path}"

    oidc_token {
      service_account_email = google_service_account.push.email
      audience              = var.push_audience
    }
  }

  retry_policy {
    minimum_backoff = "${var.policy.dead_letters.min_backoff}s"
    maximum_backoff = "${var.policy.dead_letters.max_backoff}s"
  }

  expiration_policy {
    ttl = ""
  }

  depends_on = [google_service_account_iam_member.push_token]
}
