mock_provider "google" {}

variables {
  project_id     = "example-project"
  project_number = "123456789012"
  region         = "europe-west1"
  worker_url     = "https://worker.example.run.app"
  push_audience  = "https://worker.internal"
  publishers     = { api = "api@example.iam.gserviceaccount.com", worker = "worker@example.iam.gserviceaccount.com" }
  names = {
    topic                    = "images"
    subscription             = "images-push"
    dead_letter_topic        = "letters"
    dead_letter_subscription = "letters-push"
    push                     = "glimpse-push"
    prefix                   = "glimpse"
  }
  policy = {
    attempts           = 10
    min_backoff        = 2
    max_backoff        = 120
    ack_deadline       = 60
    retention          = 604800
    reconcile_schedule = "*/5 * * * *"
    classify_path      = "/generate_annotations"
    dead_letter_path   = "/generate_annotations_dlq"
    reconcile_path     = "/reconcile"
  }
}

run "delivery" {
  command = plan

  assert {
    condition     = google_pubsub_subscription.images.ack_deadline_seconds == 60 && google_pubsub_subscription.images.message_retention_duration == "604800s"
    error_message = "Deadline and retention are the policy's."
  }

  assert {
    condition     = google_pubsub_subscription.images.dead_letter_policy[0].max_delivery_attempts == 10
    error_message = "So many attempts as the policy says."
  }

  assert {
    condition     = google_pubsub_subscription.images.retry_policy[0].minimum_backoff == "2s" && google_pubsub_subscription.images.retry_policy[0].maximum_backoff == "120s"
    error_message = "The backoff is the policy's."
  }

  assert {
    condition     = google_pubsub_subscription.images.expiration_policy[0].ttl == "" && google_pubsub_subscription.dead_letters.expiration_policy[0].ttl == ""
    error_message = "No subscription expires."
  }
}

run "worker_is_called_with_a_token" {
  command = plan

  assert {
    condition     = google_pubsub_subscription.images.push_config[0].push_endpoint == "https://worker.example.run.app/generate_annotations"
    error_message = "Messages go to the worker."
  }

  assert {
    condition     = google_pubsub_subscription.dead_letters.push_config[0].push_endpoint == "https://worker.example.run.app/generate_annotations_dlq"
    error_message = "Dead letters go to the worker too."
  }

  assert {
    condition = alltrue([
      for audience in [
        google_pubsub_subscription.images.push_config[0].oidc_token[0].audience,
        google_pubsub_subscription.dead_letters.push_config[0].oidc_token[0].audience,
        google_cloud_scheduler_job.reconciler.http_target[0].oidc_token[0].audience,
      ] : audience == "https://worker.internal"
    ])
    error_message = "All three state the audience."
  }
}

run "dead_lettering_is_granted" {
  command = plan

  assert {
    condition     = google_pubsub_topic_iam_member.agent.member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub's own account publishes dead letters."
  }

  assert {
    condition     = google_pubsub_subscription_iam_member.agent.role == "roles/pubsub.subscriber"
    error_message = "And acknowledges what it moved."
  }
}

run "too_few_attempts" {
  command = plan
  variables {
    policy = {
      attempts           = 4
      min_backoff        = 2
      max_backoff        = 120
      ack_deadline       = 60
      retention          = 604800
      reconcile_schedule = "*/5 * * * *"
      classify_path      = "/generate_annotations"
      dead_letter_path   = "/generate_annotations_dlq"
      reconcile_path     = "/reconcile"
    }
  }
  expect_failures = [var.policy]
}
