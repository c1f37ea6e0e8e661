resource "google_pubsub_topic" "channel" {
  #checkov:skip=CKV_GCP_83:Messages hold names and no image; Google's own encryption is enough
  for_each = var.policy.channels

  project = var.project_id
  name    = "${var.names.prefix}-${each.key}"

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }
}

# The API accepts images and jobs, and tells of those that it cancels; the worker does the rest.
resource "google_pubsub_topic_iam_member" "publisher" {
  for_each = local.publishers

  project = var.project_id
  topic   = google_pubsub_topic.channel[each.value.channel].name
  role    = "roles/pubsub.publisher"
  member  = "serviceAccount:${each.value.account}"
}

# /ready asks whether the topics are there, which publishers may not.
resource "google_pubsub_topic_iam_member" "viewer" {
  for_each = local.publishers

  project = var.project_id
  topic   = google_pubsub_topic.channel[each.value.channel].name
  role    = "roles/pubsub.viewer"
  member  = "serviceAccount:${each.value.account}"
}
