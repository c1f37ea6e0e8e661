mock_provider "google" {}
# Not mocked: Terraform cannot mock ephemeral values, and this provider needs no permission.
provider "random" {}

variables {
  project_id = "example-project"
  prefix     = "glimpse"
  readers    = { api = "api@example.iam.gserviceaccount.com", notify = "notify@example.iam.gserviceaccount.com" }
  secrets    = { api-keys = { version = 2, reader = "api" } }
  given      = { smtp = { secret = "mail-server", version = "latest", reader = "notify" } }
}

run "one_reader_for_each_secret" {
  command = plan

  assert {
    condition     = { for name, grant in google_secret_manager_secret_iam_member.reader : name => grant.member } == { api-keys = "serviceAccount:api@example.iam.gserviceaccount.com", smtp = "serviceAccount:notify@example.iam.gserviceaccount.com" }
    error_message = "Two secrets, one reader each."
  }

  assert {
    condition     = tostring(google_secret_manager_secret_version.this["api-keys"].secret_data_wo_version) == "2"
    error_message = "A higher version makes a new value."
  }
}

run "given_ones_are_read_and_not_made" {
  command = plan

  assert {
    condition     = toset(keys(google_secret_manager_secret.this)) == toset(["api-keys"])
    error_message = "A secret that is there is not made."
  }

  assert {
    condition     = output.versions.smtp == { secret = "mail-server", version = "latest" }
    error_message = "It is read by its own name."
  }

  assert {
    condition     = google_secret_manager_secret_iam_member.reader["smtp"].secret_id == "mail-server"
    error_message = "The grant is on it."
  }
}

run "made_and_given" {
  command = plan
  variables {
    given = { api-keys = { secret = "mail-server", version = "latest", reader = "notify" } }
  }
  expect_failures = [var.given]
}

run "a_path_is_no_name" {
  command = plan
  variables {
    given = { smtp = { secret = "projects/p/secrets/mail-server", version = "1", reader = "notify" } }
  }
  expect_failures = [var.given]
}

run "an_unknown_reader" {
  command = plan
  variables {
    readers = { api = "api@example.iam.gserviceaccount.com" }
  }
  expect_failures = [var.readers]
}
