resource "google_pubsub_topic" "images" {
  #checkov:skip=CKV_GCP_83:Messages hold a hash and no image; Google's own encryption is enough
  project = var.project_id
  name    = var.names.topic

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }
}

resource "google_pubsub_topic_iam_member" "publisher" {
  for_each = var.publishers

  project = var.project_id
  topic   = google_pubsub_topic.images.name
  role    = "roles/pubsub.publisher"
  member  = "serviceAccount:${each.value}"
}

# /ready asks whether the topic is there, which publishers may not.
resource "google_pubsub_topic_iam_member" "viewer" {
  for_each = var.publishers

  project = var.project_id
  topic   = google_pubsub_topic.images.name
  role    = "roles/pubsub.viewer"
  member  = "serviceAccount:${each.value}"
}
