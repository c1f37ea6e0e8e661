mock_provider "google" {}

variables {
  api_account    = "api@example.iam.gserviceaccount.com"
  worker_account = "worker@example.iam.gserviceaccount.com"
}

run "nothing_by_default" {
  command = plan

  assert {
    condition     = length(google_storage_bucket_iam_member.model) == 0
    error_message = "The model that the images bring lies in no bucket."
  }
}

run "a_folder_is_no_bucket" {
  command = plan
  variables {
    model_uri = "bundles/vit"
  }

  assert {
    condition     = length(google_storage_bucket_iam_member.model) == 0 && output.model_uri == "bundles/vit"
    error_message = "A folder of the images needs no grant."
  }
}

run "both_services_read_the_model" {
  command = plan
  variables {
    model_uri = "gs://example-models/2026/vit"
  }

  assert {
    condition     = toset(keys(google_storage_bucket_iam_member.model)) == toset(["api/example-models", "worker/example-models"])
    error_message = "The API reads the manifest, the worker the weights."
  }

  assert {
    condition     = google_storage_bucket_iam_member.model["api/example-models"].role == "roles/storage.objectViewer"
    error_message = "They only read."
  }

  assert {
    condition     = google_storage_bucket_iam_member.model["worker/example-models"].member == "serviceAccount:worker@example.iam.gserviceaccount.com"
    error_message = "Each by its own account."
  }
}

run "further_models_are_the_workers" {
  command = plan
  variables {
    model_uri        = "gs://example-models/b"
    extra_model_uris = ["gs://example-models/a", "gs://other-models/c", "models/default"]
  }

  assert {
    condition     = toset(keys(google_storage_bucket_iam_member.model)) == toset(["api/example-models", "worker/example-models", "worker/other-models"])
    error_message = "One grant for each bucket and reader."
  }
}
