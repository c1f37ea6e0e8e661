mock_provider "google" {
  mock_resource "google_service_account" {
    defaults = {
      name  = "projects/example-project/serviceAccounts/glimpse-deploy@example-project.iam.gserviceaccount.com"
      email = "glimpse-deploy@example-project.iam.gserviceaccount.com"
    }
  }
}
mock_provider "random" {}

variables {
  project_id    = "example-project"
  region        = "europe-west1"
  registry_name = "glimpse"
  deployer_name = "glimpse-deploy"
  prefix        = "glimpse"
}

run "without_github" {
  command = plan

  assert {
    condition     = length(google_iam_workload_identity_pool.github) == 0 && length(google_service_account.deployer) == 0
    error_message = "Without a repository there is no way in."
  }

  assert {
    condition     = output.workload_identity_provider == null && length(output.deployers) == 0
    error_message = "And nothing to tell GitHub."
  }
}

run "one_repository_and_branch" {
  command = plan

  variables {
    github_repository    = "example/glimpse"
    github_repository_id = "42"
  }

  assert {
    condition = google_iam_workload_identity_pool_provider.github[0].attribute_condition == join(" && ", [
      "assertion.repository == 'example/glimpse'",
      "assertion.repository_id == '42'",
      "assertion.ref == 'refs/heads/main'",
      "assertion.ref_type == 'branch'",
      "assertion.environment == 'production'",
      "assertion.workflow_ref == 'example/glimpse/.github/workflows/deploy.yml@refs/heads/main'",
    ])
    error_message = "One repository, by name and number, one branch, one environment and one workflow."
  }
}

run "not_a_repository" {
  command = plan
  variables {
    github_repository = "glimpse' || true || '"
  }
  expect_failures = [var.github_repository]
}

run "not_an_environment" {
  command = plan
  variables {
    github_environment = "production' || true || '"
  }
  expect_failures = [var.github_environment]
}
