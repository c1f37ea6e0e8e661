mock_provider "google" {
  mock_resource "google_service_account" {
    defaults = {
      name  = "projects/example-project/serviceAccounts/glimpse-push@example-project.iam.gserviceaccount.com"
      email = "glimpse-push@example-project.iam.gserviceaccount.com"
    }
  }
}

variables {
  project_id     = "example-project"
  project_number = "123456789012"
  region         = "europe-west1"
  worker_urls    = { interactive = "https://interactive.example.run.app", batch = "https://batch.example.run.app", notify = "https://notify.example.run.app" }
  push_audience  = "https://worker.internal"
  publishers     = { api = "api@example.iam.gserviceaccount.com", worker = "worker@example.iam.gserviceaccount.com" }
  names          = { push = "glimpse-push", prefix = "glimpse" }
}

run "policy" {
  command = plan
  module {
    source = "../policy"
  }
}

run "channels" {
  command = plan
  variables {
    policy = run.policy
  }

  assert {
    condition     = sort([for each in google_pubsub_topic.channel : each.name]) == tolist(["glimpse-images-high", "glimpse-images-low", "glimpse-images-normal", "glimpse-jobs", "glimpse-notifications"])
    error_message = "A topic for each channel."
  }

  assert {
    condition     = alltrue([for channel, each in google_pubsub_subscription.channel : each.name == "glimpse-${channel}-push"])
    error_message = "And a push subscription."
  }

  assert {
    condition     = google_pubsub_topic.dead_letters.name == "glimpse-dead-letters" && google_pubsub_subscription.dead_letters.name == "glimpse-dead-letters-push"
    error_message = "And one of each for the dead letters of all."
  }
}

run "delivery" {
  command = plan
  variables {
    policy = run.policy
  }

  assert {
    condition     = alltrue([for each in google_pubsub_subscription.channel : each.ack_deadline_seconds == 60 && each.message_retention_duration == "604800s"])
    error_message = "Deadline and retention are the policy's."
  }

  assert {
    condition     = { for channel, each in google_pubsub_subscription.channel : channel => each.dead_letter_policy[0].max_delivery_attempts } == { images-high = 100, images-normal = 100, images-low = 100, jobs = 100, notifications = 100 }
    error_message = "So many attempts as the policy says."
  }

  assert {
    condition     = google_pubsub_subscription.channel["images-high"].retry_policy[0].minimum_backoff == "2s" && google_pubsub_subscription.channel["images-high"].retry_policy[0].maximum_backoff == "600s"
    error_message = "The backoff is the policy's."
  }

  assert {
    condition     = google_pubsub_subscription.channel["notifications"].retry_policy[0].minimum_backoff == "10s" && google_pubsub_subscription.channel["notifications"].retry_policy[0].maximum_backoff == "600s"
    error_message = "A receiver of notifications has more time."
  }

  assert {
    condition     = alltrue([for each in concat(values(google_pubsub_subscription.channel), [google_pubsub_subscription.dead_letters]) : each.expiration_policy[0].ttl == ""])
    error_message = "No subscription expires."
  }
}

run "worker_is_called_with_a_token" {
  command = plan
  variables {
    policy = run.policy
  }

  assert {
    condition = { for channel, each in google_pubsub_subscription.channel : channel => each.push_config[0].push_endpoint } == {
      images-high   = "https://interactive.example.run.app/generate_annotations"
      images-normal = "https://batch.example.run.app/generate_annotations"
      images-low    = "https://batch.example.run.app/generate_annotations"
      jobs          = "https://batch.example.run.app/jobs"
      notifications = "https://notify.example.run.app/notifications"
    }
    error_message = "Each channel's messages go to its own service."
  }

  assert {
    condition     = google_pubsub_subscription.dead_letters.push_config[0].push_endpoint == "https://interactive.example.run.app/generate_annotations_dlq"
    error_message = "Dead letters go to a worker as well."
  }

  assert {
    condition     = { for name, each in google_cloud_scheduler_job.call : "${each.name} ${each.schedule}" => each.http_target[0].uri } == { "glimpse-reconcile */5 * * * *" = "https://interactive.example.run.app/reconcile", "glimpse-schedule * * * * *" = "https://interactive.example.run.app/schedule" }
    error_message = "The scheduler calls it as well."
  }

  assert {
    condition = alltrue(concat(
      [for each in google_pubsub_subscription.channel : each.push_config[0].oidc_token[0].audience == "https://worker.internal"],
      [for each in google_cloud_scheduler_job.call : each.http_target[0].oidc_token[0].audience == "https://worker.internal"],
      [google_pubsub_subscription.dead_letters.push_config[0].oidc_token[0].audience == "https://worker.internal"],
    ))
    error_message = "All of them state the audience."
  }
}

run "dead_lettering_is_granted" {
  command = plan
  variables {
    policy = run.policy
  }

  assert {
    condition     = google_pubsub_topic_iam_member.agent.member == "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    error_message = "Pub/Sub's own account publishes dead letters."
  }

  assert {
    condition     = { for channel, each in google_pubsub_subscription_iam_member.agent : channel => each.role } == { for channel, each in google_pubsub_subscription.channel : channel => "roles/pubsub.subscriber" }
    error_message = "And acknowledges what it moved."
  }
}

run "both_services_publish_to_every_channel" {
  command = plan
  variables {
    policy = run.policy
  }

  assert {
    condition     = length(google_pubsub_topic_iam_member.publisher) == 10 && length(google_pubsub_topic_iam_member.viewer) == 10
    error_message = "Five channels, two accounts."
  }
}

run "too_few_attempts" {
  command = plan
  variables {
    policy = merge(run.policy, { channels = { jobs = merge(run.policy.channels.jobs, { attempts = 4 }) } })
  }
  expect_failures = [var.policy]
}

run "a_channel_without_a_service" {
  command = plan
  variables {
    policy      = run.policy
    worker_urls = { interactive = "https://interactive.example.run.app", batch = "https://batch.example.run.app" }
  }
  expect_failures = [var.worker_urls]
}
