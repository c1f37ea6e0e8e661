locals {
  # Answers every request with 200 until the first release.
  placeholder = "us-docker.pkg.dev/cloudrun/container/hello"
  public_url  = var.domain == null ? "" : "https://${var.domain}"

  # Only the service that sends e-mail reads it.
  mail_server = var.email == null ? {} : { SMTP_URL = module.secrets.versions["smtp"] }

  # No client can then bypass the rate limit.
  behind_load_balancer = var.domain != null && !var.keep_run_address
}

module "settings" {
  source = "../../modules/settings"

  project_id       = module.project.project_id
  policy           = module.policy
  bucket           = module.images.bucket
  database         = module.records.database
  keys_database    = module.keys.database
  public_url       = local.public_url
  worker_cpus      = { for service, worker in local.workers : service => worker.cpu }
  api_streams      = var.api.streams
  api_keys         = var.api_keys
  metrics          = var.metrics
  thumbnails       = var.thumbnails
  email            = var.email
  import_buckets   = module.buckets.import_buckets
  model_uri        = module.buckets.model_uri
  extra_model_uris = module.buckets.extra_model_uris
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
  secrets = {
    KEY_SECRET = {
      secret  = module.secrets.versions["api-keys"].secret
      version = coalesce(var.key_secret_read_version, module.secrets.versions["api-keys"].version)
    }
  }
  signs_links = true

  ingress   = local.behind_load_balancer ? "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER" : "INGRESS_TRAFFIC_ALL"
  audiences = compact([local.public_url])
  public    = var.public
  deployers = module.delivery.deployers
  # A release tests the new revision as the deployer.
  invokers = merge(
    { for member in var.api_invokers : member => member },
    { for name, email in module.delivery.deployers : name => "serviceAccount:${email}" },
  )
  deletion_protection = var.deletion_protection
}

locals {
  # One image, three services, so that no kind of work takes the instances of another.
  workers = {
    interactive = merge(var.worker.interactive, { means = "single uploads, dead letters, scheduled calls" })
    batch       = merge(var.worker.batch, { means = "jobs and their images" })
    notify      = merge(var.worker.notify, { means = "webhooks and e-mail" })
  }
  # The keys are known before the services exist.
  worker_accounts = {
    interactive = module.worker["interactive"].account
    batch       = module.worker["batch"].account
    notify      = module.worker["notify"].account
  }
  worker_services = [module.worker["interactive"].name, module.worker["batch"].name, module.worker["notify"].name]
}

module "worker" {
  source   = "../../modules/service"
  for_each = local.workers

  project_id  = module.project.project_id
  region      = var.region
  name        = module.names.workers[each.key]
  description = "Glimpse worker: ${each.value.means}"
  image       = coalesce(var.worker.image, local.placeholder)

  cpu                   = each.value.cpu
  memory                = each.value.memory
  cpu_idle              = each.value.cpu_idle
  concurrency           = each.value.concurrency
  min_instances         = each.value.min_instances
  max_instances         = each.value.max_instances
  timeout_seconds       = module.policy.ack_deadline # Pub/Sub does not wait longer for the answer
  execution_environment = "EXECUTION_ENVIRONMENT_GEN2"

  environment = module.settings.workers[each.key]
  secrets     = each.key == "notify" ? local.mail_server : {}

  # Pub/Sub and Cloud Scheduler of this project count as internal, at the run.app address.
  ingress             = "INGRESS_TRAFFIC_INTERNAL_ONLY"
  audiences           = [module.names.push_audience]
  public              = false
  invokers            = { push = "serviceAccount:${module.queue.push_account}" }
  deployers           = module.delivery.deployers
  deletion_protection = var.deletion_protection
}
