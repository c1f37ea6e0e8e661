mock_provider "google" {}

variables {
  images_bucket   = "example-project-glimpse-images"
  api_account     = "api@example.iam.gserviceaccount.com"
  worker_accounts = { batch = "batch@example.iam.gserviceaccount.com", notify = "notify@example.iam.gserviceaccount.com" }
}

run "nothing_by_default" {
  command = plan

  assert {
    condition     = length(google_storage_bucket_iam_member.reader) == 0
    error_message = "The default model is in no bucket."
  }
}

run "a_folder_is_no_bucket" {
  command = plan
  variables {
    model_uri = "bundles/vit"
  }

  assert {
    condition     = length(google_storage_bucket_iam_member.reader) == 0 && output.model_uri == "bundles/vit"
    error_message = "A folder of the container image needs no grant."
  }
}

run "every_service_reads_the_model" {
  command = plan
  variables {
    model_uri = "gs://example-models/2026/vit"
  }

  assert {
    condition     = toset(keys(google_storage_bucket_iam_member.reader)) == toset(["api/example-models", "batch/example-models", "notify/example-models"])
    error_message = "The API reads the manifest, the workers read the weights."
  }

  assert {
    condition     = alltrue([for each in google_storage_bucket_iam_member.reader : each.role == "roles/storage.objectViewer"])
    error_message = "They only read."
  }

  assert {
    condition     = google_storage_bucket_iam_member.reader["batch/example-models"].member == "serviceAccount:batch@example.iam.gserviceaccount.com"
    error_message = "Each service uses its own account."
  }
}

run "further_models_are_read_by_every_service" {
  command = plan
  variables {
    model_uri        = "gs://example-models/b"
    extra_model_uris = ["gs://example-models/a", "gs://other-models/c", "models/default"]
    worker_accounts  = { batch = "batch@example.iam.gserviceaccount.com" }
  }

  assert {
    condition     = toset(keys(google_storage_bucket_iam_member.reader)) == toset(["api/example-models", "api/other-models", "batch/example-models", "batch/other-models"])
    error_message = "One grant for each bucket and reader."
  }
}

run "a_bucket_of_models_and_imports_has_one_grant" {
  command = plan
  variables {
    model_uri       = "gs://example-models/vit"
    import_buckets  = ["example-models", "example-photos"]
    worker_accounts = {}
  }

  assert {
    condition     = toset(keys(google_storage_bucket_iam_member.reader)) == toset(["api/example-models", "api/example-photos"])
    error_message = "Two resources with the same grant would delete it for each other."
  }
}

run "imports_from_the_images" {
  command = plan
  variables {
    import_buckets = ["example-project-glimpse-images"]
  }
  expect_failures = [google_storage_bucket_iam_member.reader]
}
