# Buckets of others: the API lists and reads their objects for jobs, and changes nothing.
resource "google_storage_bucket_iam_member" "importer" {
  for_each = toset(var.import_buckets)

  bucket = each.value
  role   = "roles/storage.objectViewer"
  member = "serviceAccount:${var.api_account}"
}
