mock_provider "google" {
  mock_resource "google_service_account" {
    defaults = {
      name  = "projects/example-project/serviceAccounts/glimpse-batch@example-project.iam.gserviceaccount.com"
      email = "glimpse-batch@example-project.iam.gserviceaccount.com"
    }
  }
}

variables {
  project_id            = "example-project"
  region                = "europe-west1"
  name                  = "glimpse-batch"
  description           = "Glimpse worker"
  image                 = "europe-west1-docker.pkg.dev/example-project/glimpse/worker"
  cpu                   = 2
  memory                = "2Gi"
  cpu_idle              = true
  concurrency           = 4
  max_instances         = 10
  timeout_seconds       = 60
  execution_environment = "EXECUTION_ENVIRONMENT_GEN2"
  environment           = { BACKEND = "gcp" }
  ingress               = "INGRESS_TRAFFIC_INTERNAL_ONLY"
}

run "private_by_default" {
  command = plan

  assert {
    condition     = google_cloud_run_v2_service.this.invoker_iam_disabled == false && length(google_cloud_run_v2_service_iam_member.invoker) == 0
    error_message = "Only named members may call it."
  }

  assert {
    condition     = google_cloud_run_v2_service.this.deletion_protection
    error_message = "It is protected by default."
  }

  assert {
    condition     = length(google_service_account_iam_member.signer) == 0
    error_message = "It signs nothing unless told to."
  }
}

run "probes" {
  command = plan

  assert {
    condition     = google_cloud_run_v2_service.this.template[0].containers[0].startup_probe[0].http_get[0].path == "/started"
    error_message = "It starts when its model is loaded, also while another service is down."
  }

  assert {
    condition     = google_cloud_run_v2_service.this.template[0].containers[0].liveness_probe[0].http_get[0].path == "/health"
    error_message = "It lives as long as the process answers."
  }
}

run "resources" {
  command = plan

  assert {
    condition     = google_cloud_run_v2_service.this.template[0].containers[0].resources[0].cpu_idle && google_cloud_run_v2_service.this.template[0].containers[0].resources[0].startup_cpu_boost
    error_message = "What is billed is said, and starts are boosted."
  }
}

run "secrets_are_references" {
  command = plan

  variables {
    secrets = { KEY_SECRET = { secret = "glimpse-api-keys", version = "1" } }
  }

  assert {
    condition = one([
      for env in google_cloud_run_v2_service.this.template[0].containers[0].env :
      env.value_source[0].secret_key_ref[0].secret if env.name == "KEY_SECRET"
    ]) == "glimpse-api-keys"
    error_message = "A secret's value is in no setting."
  }
}

run "all_users_are_no_invoker" {
  command = plan
  variables {
    invokers = { all = "allUsers" }
  }
  expect_failures = [var.invokers]
}

run "more_minimum_than_maximum" {
  command = plan
  variables {
    min_instances = 11
  }
  expect_failures = [var.min_instances]
}

run "gen2_below_its_minimum" {
  command = plan
  variables {
    memory = "256Mi"
  }
  expect_failures = [google_cloud_run_v2_service.this]
}

run "four_cpus_with_too_little_memory" {
  command = plan
  variables {
    cpu    = 4
    memory = "1Gi"
  }
  expect_failures = [google_cloud_run_v2_service.this]
}

run "six_cpus_with_too_little_memory" {
  command = plan
  variables {
    cpu    = 6
    memory = "2Gi"
  }
  expect_failures = [google_cloud_run_v2_service.this]
}

run "one_cpu_with_too_much_memory" {
  command = plan
  variables {
    cpu    = 1
    memory = "5Gi"
  }
  expect_failures = [google_cloud_run_v2_service.this]
}

run "two_cpus_with_too_much_memory" {
  command = plan
  variables {
    cpu    = 2
    memory = "9000Mi"
  }
  expect_failures = [google_cloud_run_v2_service.this]
}

run "cpu_that_is_always_on_below_its_minimum" {
  command = plan
  variables {
    cpu_idle              = false
    memory                = "256Mi"
    execution_environment = "EXECUTION_ENVIRONMENT_GEN1"
  }
  expect_failures = [google_cloud_run_v2_service.this]
}

run "pairs_that_cloud_run_takes" {
  command = plan
  variables {
    cpu                   = 1
    memory                = "256Mi"
    execution_environment = "EXECUTION_ENVIRONMENT_GEN1"
  }

  assert {
    condition     = google_cloud_run_v2_service.this.template[0].containers[0].resources[0].limits == tomap({ cpu = "1", memory = "256Mi" })
    error_message = "The first generation needs 128Mi."
  }
}
