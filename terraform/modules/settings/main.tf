# The services' environment. A test gives it to core/settings.py, which must accept it.
locals {
  common = {
    BACKEND              = "gcp"
    GOOGLE_CLOUD_PROJECT = var.project_id
    DATASTORE_DATABASE   = var.database
    BUCKET               = var.bucket

    TOPIC                    = var.queue.topic
    SUBSCRIPTION             = var.queue.subscription
    DEAD_LETTER_TOPIC        = var.queue.dead_letter_topic
    DEAD_LETTER_SUBSCRIPTION = var.queue.dead_letter_subscription
    PUSH_AUDIENCE            = var.queue.push_audience
    PUSH_SERVICE_ACCOUNT     = var.queue.push_account

    DELIVERY_ATTEMPTS    = tostring(var.policy.attempts)
    MIN_BACKOFF_SECONDS  = tostring(var.policy.min_backoff)
    MAX_BACKOFF_SECONDS  = tostring(var.policy.max_backoff)
    ACK_DEADLINE_SECONDS = tostring(var.policy.ack_deadline)
    LEASE_SECONDS        = tostring(var.policy.lease)
    RETENTION_SECONDS    = tostring(var.policy.retention)
    STALE_SECONDS        = tostring(var.policy.stale_after)

    DEAD_LETTER_RETENTION_SECONDS = tostring(var.policy.dead_letter_retention)

    LOG_FORMAT = "json"
    LOG_LEVEL  = var.log_level
    TRACES     = "gcp"
    METRICS    = tostring(var.metrics)
  }

  api = {
    API_KEYS   = var.api_keys
    PUBLIC_URL = var.public_url
    # Without keys it is Cloud Run's IAM that asks who calls.
    ALLOW_PUBLIC = tostring(var.api_keys == "off")
  }

  worker = {
    # A container may see more cores than it may use.
    WORKER_CONCURRENCY = tostring(var.worker_cpus)
  }
}
