mock_provider "google" {}
# Not mocked: Terraform cannot mock ephemeral values, and this provider needs nobody's permission.
provider "random" {}

variables {
  project_id = "example-project"
  prefix     = "glimpse"
  readers    = { api = "api@example.iam.gserviceaccount.com", worker = "worker@example.iam.gserviceaccount.com" }
  secrets = {
    api-keys = {}
    webhooks = { format = "whsec", version = 2 }
  }
}

run "each_reader_reads_each" {
  command = plan

  assert {
    condition     = length(google_secret_manager_secret_iam_member.reader) == 4
    error_message = "Two readers of two secrets."
  }

  assert {
    condition     = google_secret_manager_secret_version.this["webhooks"].secret_data_wo_version == 2
    error_message = "A higher version makes a new value."
  }
}

run "unknown_format" {
  command = plan
  variables {
    secrets = { webhooks = { format = "pem" } }
  }
  expect_failures = [var.secrets]
}
