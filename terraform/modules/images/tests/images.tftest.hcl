mock_provider "google" {}

variables {
  project_id     = "example-project"
  name           = "example-project-glimpse-images"
  location       = "europe-west1"
  api_account    = "api@example.iam.gserviceaccount.com"
  worker_account = "worker@example.iam.gserviceaccount.com"
}

run "private" {
  command = plan

  assert {
    condition     = google_storage_bucket.images.uniform_bucket_level_access && google_storage_bucket.images.public_access_prevention == "enforced"
    error_message = "Nothing in it can be made public."
  }

  assert {
    condition     = google_storage_bucket_iam_member.worker.role == "roles/storage.objectViewer"
    error_message = "The worker only reads."
  }

  assert {
    condition     = google_storage_bucket.images.force_destroy == false
    error_message = "Images survive a destroy unless somebody says otherwise."
  }
}

run "imports_are_read_only" {
  command = plan
  variables {
    import_buckets = ["example-photos"]
  }

  assert {
    condition     = google_storage_bucket_iam_member.importer["example-photos"].role == "roles/storage.objectViewer"
    error_message = "The API only reads what it imports."
  }
}

run "nothing_is_imported_by_default" {
  command = plan

  assert {
    condition     = length(google_storage_bucket_iam_member.importer) == 0
    error_message = "Without a word to the contrary, no bucket."
  }
}

run "imports_from_its_own" {
  command = plan
  variables {
    import_buckets = ["example-project-glimpse-images"]
  }
  expect_failures = [var.import_buckets]
}

run "deleted_before_its_message" {
  command = plan
  variables {
    delete_after_days = 1
  }
  expect_failures = [var.delete_after_days]
}
