locals {
  uris = {
    api    = compact([var.model_uri])
    worker = compact(concat([var.model_uri], var.extra_model_uris))
  }
  accounts = {
    api    = var.api_account
    worker = var.worker_account
  }

  # Whose keys are known before the accounts are.
  readers = merge([
    for service, uris in local.uris : {
      for bucket in distinct([for uri in uris : split("/", uri)[2] if startswith(uri, "gs://")]) :
      "${service}/${bucket}" => { bucket = bucket, account = local.accounts[service] }
    }
  ]...)
}

# The buckets exist already, and may hold more than models: what is in them is read, and listed.
resource "google_storage_bucket_iam_member" "model" {
  for_each = local.readers

  bucket = each.value.bucket
  role   = "roles/storage.objectViewer"
  member = "serviceAccount:${each.value.account}"
}
