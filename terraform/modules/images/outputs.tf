output "bucket" {
  description = "The bucket's name, once the services may use it"
  value       = google_storage_bucket.images.name

  depends_on = [
    google_storage_bucket_iam_member.reader,
    google_storage_bucket_iam_member.writer,
  ]
}
