# Who calls the worker: Pub/Sub and Cloud Scheduler, both as this account.
resource "google_service_account" "push" {
  project      = var.project_id
  account_id   = var.names.push
  display_name = "${var.names.prefix}: calls the worker"
}

# Pub/Sub makes this account's tokens. In projects older than April 2021 it may not by itself.
resource "google_service_account_iam_member" "push_token" {
  service_account_id = google_service_account.push.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = local.pubsub_agent

  # Pub/Sub's account is made with the first topic of a project.
  depends_on = [google_pubsub_topic.channel]
}
