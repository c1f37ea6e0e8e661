mock_provider "google" {}
# Not mocked: Terraform cannot mock ephemeral values, and this provider needs nobody's permission.
provider "random" {}

variables {
  project_id = "example-project"
  prefix     = "glimpse"
  readers    = { api = "api@example.iam.gserviceaccount.com", worker = "worker@example.iam.gserviceaccount.com" }
  secrets    = { api-keys = { version = 2 } }
  given      = { smtp = { secret = "mail-server", version = "latest" } }
}

run "each_reader_reads_each" {
  command = plan

  assert {
    condition     = length(google_secret_manager_secret_iam_member.reader) == 4
    error_message = "Two readers of two secrets."
  }

  assert {
    condition     = google_secret_manager_secret_version.this["api-keys"].secret_data_wo_version == 2
    error_message = "A higher version makes a new value."
  }
}

run "given_ones_are_read_and_not_made" {
  command = plan

  assert {
    condition     = keys(google_secret_manager_secret.this) == tolist(["api-keys"])
    error_message = "A secret that is there is not made."
  }

  assert {
    condition     = output.versions.smtp == { secret = "mail-server", version = "latest" }
    error_message = "It is read by its own name."
  }

  assert {
    condition     = google_secret_manager_secret_iam_member.reader["smtp/worker"].secret_id == "mail-server"
    error_message = "By the same readers."
  }
}

run "made_and_given" {
  command = plan
  variables {
    given = { api-keys = { secret = "mail-server", version = "latest" } }
  }
  expect_failures = [var.given]
}

run "a_path_is_no_name" {
  command = plan
  variables {
    given = { smtp = { secret = "projects/p/secrets/mail-server", version = "1" } }
  }
  expect_failures = [var.given]
}
