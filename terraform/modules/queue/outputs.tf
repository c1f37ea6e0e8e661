output "topic_prefix" {
  description = "Prefix of the topics' names, after the services may publish to them"
  value       = var.names.prefix

  depends_on = [google_pubsub_topic_iam_member.publisher, google_pubsub_topic_iam_member.viewer]
}

output "subscriptions" {
  description = "Names of the push subscriptions, by their channels; dead letters aside"
  value       = { for channel, subscription in google_pubsub_subscription.channel : channel => subscription.name }
}

output "dead_letter_subscription" {
  description = "Name of the push subscription of the dead letters"
  value       = google_pubsub_subscription.dead_letters.name
}

output "push_account" {
  description = "E-mail of the account that calls the worker"
  value       = google_service_account.push.email
}

output "scheduler_jobs" {
  description = "Names of the jobs that call the worker regularly"
  value       = [for call in google_cloud_scheduler_job.call : call.name]
}
