locals {
  # gs:// addresses by the service that reads them: the API reads the manifests.
  uris     = { for service in concat(keys(var.worker_accounts), ["api"]) : service => concat(compact([var.model_uri]), var.extra_model_uris) }
  accounts = merge(var.worker_accounts, { api = var.api_account })

  # One grant for each service and bucket, also for a bucket that holds both models and images to import:
  # two resources with the same grant would delete it for each other. The keys are known before the
  # accounts are.
  readers = merge(
    { for bucket in var.import_buckets : "api/${bucket}" => { service = "api", bucket = bucket } },
    merge([
      for service, uris in local.uris : {
        for bucket in distinct([for uri in uris : split("/", uri)[2] if startswith(uri, "gs://")]) :
        "${service}/${bucket}" => { service = service, bucket = bucket }
      }
    ]...),
  )
}

# The buckets exist already and may hold other objects. The services read and list, and change nothing.
resource "google_storage_bucket_iam_member" "reader" {
  for_each = local.readers

  bucket = each.value.bucket
  role   = "roles/storage.objectViewer"
  member = "serviceAccount:${local.accounts[each.value.service]}"

  lifecycle {
    precondition {
      condition     = each.value.bucket != var.images_bucket
      error_message = "The bucket of the images is not for imports and models: a tenant could import the images of another."
    }
  }
}
