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
}
# Not mocked: Terraform cannot mock ephemeral values, and this provider needs nobody's permission.
provider "random" {}

run "only_a_project" {
  variables {
    project_id = "example-project"
  }

  assert {
    condition     = output.api_url == "https://service.example.run.app" && output.dns == null
    error_message = "Without a domain the API is at its run.app address."
  }

  assert {
    condition     = output.GCP_REGISTRY == "europe-west1-docker.pkg.dev/example-project/glimpse"
    error_message = "Images go to the project's registry."
  }

  assert {
    condition     = output.GCP_DEPLOYER == null && output.GCP_WORKLOAD_IDENTITY_PROVIDER == null
    error_message = "Without a repository nobody deploys."
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
    condition     = output.API_SERVICE == "glimpse-api" && output.WORKER_SERVICE == "glimpse-worker"
    error_message = "What GitHub deploys to."
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
    condition     = module.settings.worker.MODEL_URI == "gs://example-models/vit" && module.settings.api.MODEL_URI == "gs://example-models/vit"
    error_message = "Both services have it, once they may read it."
  }

  assert {
    condition     = module.settings.worker.EXTRA_MODEL_URIS == "models/default"
    error_message = "The worker goes on answering for the one before."
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

run "a_zone_is_no_region" {
  command = plan
  variables {
    project_id = "example-project"
    region     = "europe-west1-b"
  }
  expect_failures = [var.region]
}
