output "model_uri" {
  description = "The model of both services, once they may read it"
  value       = var.model_uri

  depends_on = [google_storage_bucket_iam_member.model]
}

output "extra_model_uris" {
  description = "The further models of the worker, once it may read them"
  value       = var.extra_model_uris

  depends_on = [google_storage_bucket_iam_member.model]
}
