variables {
  project_id    = "example-project"
  bucket        = "example-bucket"
  database      = "glimpse"
  keys_database = "glimpse-keys"
  worker_cpus   = { interactive = 2, batch = 4 }
  api_streams   = 160
  policy = {
    attempts    = 10
    max_backoff = 120
    lease       = 30
  }
  queue = {
    topic_prefix  = "glimpse"
    push_audience = "https://worker.internal"
    push_account  = "push@example-project.iam.gserviceaccount.com"
  }
}

run "keys_for_the_api_only" {
  command = plan

  assert {
    condition     = output.api.DATASTORE_DATABASE == "glimpse" && output.api.DATASTORE_KEYS_DATABASE == "glimpse-keys"
    error_message = "The API uses both databases."
  }

  assert {
    condition     = alltrue([for worker in values(output.workers) : worker.DATASTORE_DATABASE == "glimpse" && !contains(keys(worker), "DATASTORE_KEYS_DATABASE")])
    error_message = "The workers do not use the database of the keys."
  }
}

run "private_by_default" {
  command = plan

  assert {
    condition     = output.api.API_KEYS == "required"
    error_message = "By default, callers need a key."
  }

  assert {
    condition     = output.api.METRICS == "false"
    error_message = "By default, the API shows no metrics."
  }

  assert {
    condition     = output.api.THUMBNAILS == "false"
    error_message = "By default, nothing is stored besides the images."
  }
}

run "thumbnails" {
  command = plan

  variables {
    thumbnails = true
  }

  assert {
    condition     = output.api.THUMBNAILS == "true" && alltrue([for worker in output.workers : worker.THUMBNAILS == "true"])
    error_message = "The workers make thumbnails, and the API serves them."
  }
}

run "worker_cores" {
  command = plan

  assert {
    condition     = { for service, worker in output.workers : service => worker.WORKER_CONCURRENCY } == { interactive = "2", batch = "4" }
    error_message = "An instance classifies as many images at once as it has CPUs."
  }

  assert {
    condition     = !contains(keys(output.workers["batch"]), "PUBLIC_URL")
    error_message = "The worker makes no links."
  }
}

run "cloud_run_checks_the_caller" {
  command = plan

  assert {
    condition     = alltrue([for worker in output.workers : worker.PUSH_AUTH == "iam"]) && !contains(keys(output.api), "PUSH_AUTH")
    error_message = "Cloud Run may remove the signature of a token."
  }
}

run "extra_wins" {
  command = plan

  variables {
    extra = { LOG_LEVEL = "debug" }
  }

  assert {
    condition     = output.api.LOG_LEVEL == "debug" && output.workers["batch"].LOG_LEVEL == "debug"
    error_message = "Further settings win over ours."
  }
}

run "streams_are_the_apis" {
  command = plan

  assert {
    condition     = output.api.MAX_STREAMS == "160" && !contains(keys(output.workers["batch"]), "MAX_STREAMS")
    error_message = "As many streams as the API is given requests for."
  }
}

run "no_email_by_default" {
  command = plan

  assert {
    condition     = !contains(keys(output.api), "EMAIL_FROM") && !contains(keys(output.workers["batch"]), "EMAIL_FROM")
    error_message = "Without a sender there is no e-mail."
  }
}

run "email" {
  command = plan

  variables {
    email = { from = "glimpse@example.com", allowed_domains = ["example.com", "example.org"] }
  }

  assert {
    condition     = output.workers["batch"].EMAIL_FROM == "glimpse@example.com" && output.api.EMAIL_ALLOWED_DOMAINS == "example.com,example.org"
    error_message = "The API checks addresses, the worker writes to them."
  }
}

run "the_model_that_the_images_bring" {
  command = plan

  assert {
    condition     = !contains(keys(output.api), "MODEL_URI") && !contains(keys(output.workers["batch"]), "EXTRA_MODEL_URIS")
    error_message = "By default, the model of the images."
  }
}

run "a_model_from_a_bucket" {
  command = plan

  variables {
    model_uri        = "gs://example-models/2026/vit"
    extra_model_uris = ["models/default", "gs://example-models/before"]
  }

  assert {
    condition     = output.api.MODEL_URI == "gs://example-models/2026/vit" && output.workers["batch"].MODEL_URI == output.api.MODEL_URI
    error_message = "Both services have the same model."
  }

  assert {
    condition     = output.workers["batch"].EXTRA_MODEL_URIS == "models/default,gs://example-models/before" && output.api.EXTRA_MODEL_URIS == output.workers["batch"].EXTRA_MODEL_URIS
    error_message = "Both services have the same further models."
  }
}

run "a_bucket_is_no_model" {
  command = plan
  variables {
    model_uri = "gs://example-models/"
  }
  expect_failures = [var.model_uri]
}

run "a_model_elsewhere" {
  command = plan
  variables {
    extra_model_uris = ["s3://example-models/vit"]
  }
  expect_failures = [var.extra_model_uris]
}

run "two_models_in_one" {
  command = plan
  variables {
    extra_model_uris = ["models/default,bundles/vit"]
  }
  expect_failures = [var.extra_model_uris]
}

run "no_imports_by_default" {
  command = plan

  assert {
    condition     = !contains(keys(output.api), "IMPORT_BUCKETS")
    error_message = "Without a bucket nothing is imported."
  }
}

run "imports_are_the_apis" {
  command = plan

  variables {
    import_buckets = ["photos", "more-photos"]
  }

  assert {
    condition     = output.api.IMPORT_BUCKETS == "photos,more-photos" && !contains(keys(output.workers["batch"]), "IMPORT_BUCKETS")
    error_message = "The API reads them, the worker does not."
  }
}

run "bucket_as_an_address" {
  command = plan
  variables {
    import_buckets = ["gs://photos"]
  }
  expect_failures = [var.import_buckets]
}

run "no_sender" {
  command = plan
  variables {
    email = { from = "glimpse" }
  }
  expect_failures = [var.email]
}

run "half_a_stream" {
  command = plan
  variables {
    api_streams = 0.5
  }
  expect_failures = [var.api_streams]
}

run "half_a_cpu" {
  command = plan
  variables {
    worker_cpus = { batch = 0.5 }
  }
  expect_failures = [var.worker_cpus]
}

run "keys_misspelt" {
  command = plan
  variables {
    api_keys = "yes"
  }
  expect_failures = [var.api_keys]
}

run "url_with_slash" {
  command = plan
  variables {
    public_url = "https://labels.example.com/"
  }
  expect_failures = [var.public_url]
}

run "lower_case_setting" {
  command = plan
  variables {
    extra = { log_level = "debug" }
  }
  expect_failures = [var.extra]
}

run "a_bucket_without_its_grant" {
  command = plan
  variables {
    extra = { IMPORT_BUCKETS = "photos" }
  }
  expect_failures = [var.extra]
}

run "unknown_level" {
  command = plan
  variables {
    log_level = "trace"
  }
  expect_failures = [var.log_level]
}
