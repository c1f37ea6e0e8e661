variables {
  project_id = "example-project"
  name       = "glimpse"
}

run "default" {
  command = plan

  assert {
    condition     = output.bucket == "example-project-glimpse-images"
    error_message = "The project's id makes the bucket's name unique."
  }

  assert {
    condition     = length(distinct(concat([output.api, output.push, output.deployer], values(output.workers)))) == 6
    error_message = "Each service has an account of its own."
  }
}

run "longest" {
  command = plan

  variables {
    project_id = "p23456789012345678901234567890"
    name       = "n23456789012345678"
  }

  assert {
    condition     = length(output.bucket) <= 63
    error_message = "A bucket's name has at most 63 characters."
  }

  assert {
    condition     = alltrue([for account in concat([output.api, output.push, output.deployer], values(output.workers)) : length(account) <= 30])
    error_message = "A service account's name has at most 30 characters."
  }

  # google_iam_workload_identity_pool: 4 to 32 characters.
  assert {
    condition     = length("${output.prefix}-github-0123") <= 32
    error_message = "A pool's name has at most 32 characters."
  }
}

run "upper_case" {
  command = plan
  variables {
    name = "Glimpse"
  }
  expect_failures = [var.name]
}

run "too_long" {
  command = plan
  variables {
    name = "n234567890123456789"
  }
  expect_failures = [var.name]
}

run "two_hyphens" {
  command = plan
  variables {
    name = "glimpse--test"
  }
  expect_failures = [var.name]
}

run "googles_own" {
  command = plan
  variables {
    name = "google"
  }
  expect_failures = [var.name]
}

run "no_project" {
  command = plan
  variables {
    project_id = "1"
  }
  expect_failures = [var.project_id]
}

run "googles_own_pool" {
  command = plan
  variables {
    name = "gcp-glimpse"
  }
  expect_failures = [var.name]
}
