mock_provider "google" {}

variables {
  project_id      = "example-project"
  name            = "example-project-glimpse-images"
  location        = "europe-west1"
  api_account     = "api@example.iam.gserviceaccount.com"
  worker_accounts = { batch = "batch@example.iam.gserviceaccount.com" }
}

run "private" {
  command = plan

  assert {
    condition     = google_storage_bucket.images.uniform_bucket_level_access && google_storage_bucket.images.public_access_prevention == "enforced"
    error_message = "Nothing in it can be made public."
  }

  assert {
    condition     = google_storage_bucket_iam_member.worker["batch"].role == "roles/storage.objectViewer"
    error_message = "The worker only reads."
  }

  assert {
    condition     = google_storage_bucket.images.force_destroy == false
    error_message = "Images survive a destroy by default."
  }
}

run "deleted_before_its_message" {
  command = plan
  variables {
    delete_after_days = 1
  }
  expect_failures = [var.delete_after_days]
}
