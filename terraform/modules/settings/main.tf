# The services' environment. A test gives it to core/settings.py, which must accept it.
locals {
  common = {
    BACKEND              = "gcp"
    GOOGLE_CLOUD_PROJECT = var.project_id
    DATASTORE_DATABASE   = var.database
    BUCKET               = var.bucket

    TOPIC_PREFIX         = var.queue.topic_prefix
    PUSH_AUDIENCE        = var.queue.push_audience
    PUSH_SERVICE_ACCOUNT = var.queue.push_account

    DELIVERY_ATTEMPTS   = tostring(var.policy.attempts)
    MAX_BACKOFF_SECONDS = tostring(var.policy.max_backoff)
    LEASE_SECONDS       = tostring(var.policy.lease)

    LOG_FORMAT = "json"
    LOG_LEVEL  = var.log_level
    TRACES     = "gcp"
    METRICS    = tostring(var.metrics)
    THUMBNAILS = tostring(var.thumbnails)
  }

  # Only where e-mail is sent.
  email = {
    EMAIL_FROM            = try(var.email.from, "")
    EMAIL_ALLOWED_DOMAINS = try(join(",", var.email.allowed_domains), "")
  }

  # Only where it is not the one that the images bring.
  model = {
    MODEL_URI = var.model_uri
  }

  # Only where there are any.
  models = {
    EXTRA_MODEL_URIS = join(",", var.extra_model_uris)
  }

  # Only where jobs may import.
  imports = {
    IMPORT_BUCKETS = join(",", var.import_buckets)
  }

  api = {
    API_KEYS   = var.api_keys
    PUBLIC_URL = var.public_url
    # The workers have neither its name nor a grant.
    DATASTORE_KEYS_DATABASE = var.keys_database
    # Without keys it is Cloud Run's IAM that asks who calls.
    ALLOW_PUBLIC = tostring(var.api_keys == "off")
    # Each holds one of the requests that an instance takes at once.
    MAX_STREAMS = tostring(var.api_streams)
  }

  # Cloud Run checks each caller and may remove the signature from the token: core/settings.py has the rules.
  worker = {
    PUSH_AUTH = "iam"
  }
}
