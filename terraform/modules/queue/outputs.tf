output "topic" {
  description = "Name of the topic, once the services may publish to it"
  value       = google_pubsub_topic.images.name

  depends_on = [google_pubsub_topic_iam_member.publisher, google_pubsub_topic_iam_member.viewer]
}

output "subscription" {
  description = "Name of the push subscription"
  value       = google_pubsub_subscription.images.name
}

output "dead_letter_topic" {
  description = "Name of the topic of the dead letters"
  value       = google_pubsub_topic.dead_letters.name
}

output "dead_letter_subscription" {
  description = "Name of the push subscription of the dead letters"
  value       = google_pubsub_subscription.dead_letters.name
}

output "push_account" {
  description = "E-mail of the account that calls the worker"
  value       = google_service_account.push.email
}

output "scheduler_job" {
  description = "Name of the job that calls the reconciler"
  value       = google_cloud_scheduler_job.reconciler.name
}
