output "model_uri" {
  description = "The model of every service, once they may read it"
  value       = var.model_uri

  depends_on = [google_storage_bucket_iam_member.reader]
}

output "extra_model_uris" {
  description = "The further models, once the services may read them"
  value       = var.extra_model_uris

  depends_on = [google_storage_bucket_iam_member.reader]
}

output "import_buckets" {
  description = "The buckets that jobs may import from, once the API may read them"
  value       = var.import_buckets

  depends_on = [google_storage_bucket_iam_member.reader]
}
