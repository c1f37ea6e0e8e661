mock_provider "google" {}

variables {
  project_id = "example-project"
  name       = "example-project-glimpse-images"
  location   = "europe-west1"
  writers    = { batch = "batch@example.iam.gserviceaccount.com" }
  readers    = { notify = "notify@example.iam.gserviceaccount.com" }
}

run "private" {
  command = plan

  assert {
    condition     = google_storage_bucket.images.uniform_bucket_level_access && google_storage_bucket.images.public_access_prevention == "enforced"
    error_message = "Nothing in it can be made public."
  }

  assert {
    condition     = google_storage_bucket_iam_member.reader["notify"].role == "roles/storage.objectViewer" && google_storage_bucket_iam_member.writer["batch"].role == "roles/storage.objectUser"
    error_message = "A service that only reads cannot write."
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
