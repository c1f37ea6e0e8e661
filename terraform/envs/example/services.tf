locals {
  # Answers every request with 200 until the first deploy.
  placeholder = "us-docker.pkg.dev/cloudrun/container/hello"
  public_url  = var.domain == null ? "" : "https://${var.domain}"

  # The API has it to know whether, and to whom, e-mail can go.
  mail_server = var.email == null ? {} : { SMTP_URL = module.secrets.versions["smtp"] }

  # Then no client can bypass the rate limit.
  behind_load_balancer = var.domain != null && !var.keep_run_address
}

module "settings" {
  source = "../../modules/settings"

  project_id       = module.project.project_id
  policy           = module.policy
  bucket           = module.images.bucket
  database         = module.records.database
  public_url       = local.public_url
  worker_cpus      = var.worker.cpu
  api_streams      = var.api.streams
  api_keys         = var.api_keys
  metrics          = var.metrics
  email            = var.email
  import_buckets   = var.import_buckets
  model_uri        = module.models.model_uri
  extra_model_uris = module.models.extra_model_uris
  extra            = var.extra_settings
  queue = {
    topic_prefix  = module.queue.topic_prefix
    push_audience = module.names.push_audience
    push_account  = module.queue.push_account
  }
}

module "api" {
  source = "../../modules/service"

  project_id  = module.project.project_id
  region      = var.region
  name        = module.names.api
  description = "Glimpse API: takes images, answers with labels"
  image       = coalesce(var.api.image, local.placeholder)

  cpu                   = var.api.cpu
  memory                = var.api.memory
  cpu_idle              = var.api.cpu_idle
  concurrency           = var.api.concurrency + var.api.streams
  min_instances         = var.api.min_instances
  max_instances         = var.api.max_instances
  timeout_seconds       = 3600 # the longest there is: a stream ends after 55 minutes
  execution_environment = "EXECUTION_ENVIRONMENT_GEN1"

  environment = module.settings.api
  secrets     = merge({ KEY_SECRET = module.secrets.versions["api-keys"] }, local.mail_server)
  signs_links = true

  ingress   = local.behind_load_balancer ? "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER" : "INGRESS_TRAFFIC_ALL"
  audiences = compact([local.public_url])
  public    = var.public
  deployers = module.delivery.deployers
  # Who releases asks the new revision a question first.
  invokers = merge(
    { for member in var.api_invokers : member => member },
    { for name, email in module.delivery.deployers : name => "serviceAccount:${email}" },
  )
  deletion_protection = var.deletion_protection
}

module "worker" {
  source = "../../modules/service"

  project_id  = module.project.project_id
  region      = var.region
  name        = module.names.worker
  description = "Glimpse worker: does what Pub/Sub pushes"
  image       = coalesce(var.worker.image, local.placeholder)

  cpu                   = var.worker.cpu
  memory                = var.worker.memory
  cpu_idle              = var.worker.cpu_idle
  concurrency           = var.worker.cpu * var.worker.requests_per_cpu + var.worker.waiting_requests
  min_instances         = var.worker.min_instances
  max_instances         = var.worker.max_instances
  timeout_seconds       = module.policy.ack_deadline # Pub/Sub does not wait longer for the answer
  execution_environment = "EXECUTION_ENVIRONMENT_GEN2"

  environment = module.settings.worker
  secrets     = local.mail_server

  # Pub/Sub and Cloud Scheduler of this project count as internal, at the run.app address.
  ingress             = "INGRESS_TRAFFIC_INTERNAL_ONLY"
  audiences           = [module.names.push_audience]
  public              = false
  invokers            = { push = "serviceAccount:${module.queue.push_account}" }
  deployers           = module.delivery.deployers
  deletion_protection = var.deletion_protection
}
