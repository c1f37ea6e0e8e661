mock_provider "google" {
  mock_data "google_project" {
    defaults = {
      number = "123456789012"
    }
  }
  mock_resource "google_cloud_run_v2_service" {
    defaults = {
      uri = "https://service.example.run.app"
    }
  }
  # The provider checks the form of an account's name.
  mock_resource "google_service_account" {
    defaults = {
      name  = "projects/example-project/serviceAccounts/mocked@example-project.iam.gserviceaccount.com"
      email = "mocked@example-project.iam.gserviceaccount.com"
    }
  }
}
mock_provider "time" {}
# Not mocked: Terraform cannot mock ephemeral values, and this provider needs no credentials.
provider "random" {}

# So that the test may destroy what it applied.
variables {
  deletion_protection  = false
  force_destroy_images = true
}

run "only_a_project" {
  variables {
    project_id = "example-project"
  }

  assert {
    condition     = output.api_url == "https://service.example.run.app" && output.dns == null
    error_message = "Without a domain the API is at its run.app address."
  }

  assert {
    condition     = output.database == "glimpse" && output.keys_database == "glimpse-keys"
    error_message = "Records and API keys have separate databases."
  }

  assert {
    condition     = output.GCP_REGISTRY == "europe-west1-docker.pkg.dev/example-project/glimpse"
    error_message = "Images go to the project's registry."
  }

  assert {
    condition     = output.GCP_DEPLOYER == null && output.GCP_WORKLOAD_IDENTITY_PROVIDER == null
    error_message = "Without a repository there is no deployer."
  }
}

run "everything" {
  variables {
    project_id           = "example-project"
    domain               = "labels.example.com"
    public               = true
    api_invokers         = ["user:ada@example.com"]
    alert_email          = "ops@example.com"
    github_repository    = "example/glimpse"
    github_repository_id = "42"
    billing_account      = "012345-6789AB-CDEF01"
  }

  assert {
    condition     = output.api_url == "https://labels.example.com" && startswith(output.dns, "labels.example.com. A ")
    error_message = "With a domain the API is there."
  }

  assert {
    condition     = output.API_URL == "https://labels.example.com"
    error_message = "Releases ask it through the load balancer."
  }

  assert {
    condition     = output.API_SERVICE == "glimpse-api" && output.WORKER_SERVICES == "glimpse-interactive,glimpse-batch,glimpse-notify"
    error_message = "GitHub deploys to four services."
  }
}

run "a_model_from_a_bucket" {
  command = plan

  variables {
    project_id       = "example-project"
    model_uri        = "gs://example-models/vit"
    extra_model_uris = ["models/default"]
  }

  assert {
    condition     = module.settings.workers["batch"].MODEL_URI == "gs://example-models/vit" && module.settings.api.MODEL_URI == "gs://example-models/vit"
    error_message = "Both services have it, once they may read it."
  }

  assert {
    condition     = module.settings.workers["interactive"].EXTRA_MODEL_URIS == "models/default" && module.settings.api.EXTRA_MODEL_URIS == "models/default"
    error_message = "The services go on answering for the one before."
  }
}

run "run_address_beside_the_domain" {
  command = plan

  variables {
    project_id       = "example-project"
    domain           = "labels.example.com"
    keep_run_address = true
  }

  assert {
    condition     = output.API_URL == null
    error_message = "Releases ask it at its own address."
  }
}

run "public_without_keys" {
  command = plan
  variables {
    project_id = "example-project"
    public     = true
    api_keys   = "off"
  }
  expect_failures = [var.api_keys]
}

run "one_reader_for_each_secret" {
  command = plan
  variables {
    project_id = "example-project"
    email      = { secret = "mail-server", from = "glimpse@example.com" }
  }

  assert {
    condition     = { for service, worker in module.worker : service => join(",", worker.secrets) } == { interactive = "", batch = "", notify = "SMTP_URL" } && join(",", module.api.secrets) == "KEY_SECRET"
    error_message = "Only the API reads KEY_SECRET, and only notify reads SMTP_URL."
  }
}

run "too_many_channels_for_a_budget" {
  command = plan
  variables {
    project_id      = "example-project"
    alert_email     = "ops@example.com"
    budget_channels = [for n in range(5) : "projects/example-project/notificationChannels/${n}"]
  }
  expect_failures = [var.budget_channels]
}

run "notify_with_too_few_slots" {
  command = plan
  variables {
    project_id = "example-project"
    worker     = { notify = { concurrency = 16 } }
  }
  expect_failures = [var.worker]
}

run "a_region_without_the_products" {
  command = plan
  variables {
    project_id = "example-project"
    region     = "europe-west5"
  }
  expect_failures = [var.region]
}

run "a_zone_is_no_region" {
  command = plan
  variables {
    project_id = "example-project"
    region     = "europe-west1-b"
  }
  expect_failures = [var.region]
}
