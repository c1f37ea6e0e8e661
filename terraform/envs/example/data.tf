# Stored data: images, records, keys, secrets. And the buckets that the services read.
module "images" {
  source = "../../modules/images"

  project_id = module.project.project_id
  name       = module.names.bucket
  location   = var.region
  # A deletion that was interrupted is completed by interactive; batch stores what training makes.
  writers             = { api = module.api.account, interactive = local.worker_accounts.interactive, batch = local.worker_accounts.batch }
  readers             = { notify = local.worker_accounts.notify }
  coldline_after_days = var.images.coldline_after_days
  delete_after_days   = var.images.delete_after_days
  soft_delete_days    = var.images.soft_delete_days
  force_destroy       = var.force_destroy_images
}

module "buckets" {
  source = "../../modules/buckets"

  model_uri        = var.model_uri
  extra_model_uris = var.extra_model_uris
  import_buckets   = var.import_buckets
  images_bucket    = module.names.bucket
  api_account      = module.api.account
  worker_accounts  = local.worker_accounts
}

module "records" {
  source = "../../modules/database"

  project_id             = module.project.project_id
  name                   = module.names.database
  location               = var.region
  accounts               = merge({ api = module.api.account }, local.worker_accounts)
  delete_protection      = var.deletion_protection
  point_in_time_recovery = var.point_in_time_recovery
}

# API keys and limits. Only the API reaches them: the workers cannot make keys, and cannot raise limits.
module "keys" {
  source = "../../modules/database"

  project_id             = module.project.project_id
  name                   = module.names.keys_database
  location               = var.region
  accounts               = { api = module.api.account }
  delete_protection      = var.deletion_protection
  point_in_time_recovery = var.point_in_time_recovery

  # The free tier covers one database of a project, the first one.
  depends_on = [module.records]
}

module "secrets" {
  source = "../../modules/secrets"

  project_id = module.project.project_id
  prefix     = module.names.prefix
  readers    = { api = module.api.account, notify = module.worker["notify"].account }
  secrets    = { api-keys = { version = var.key_secret_version, reader = "api" } }
  given      = var.email == null ? {} : { smtp = { secret = var.email.secret, version = var.email.version, reader = "notify" } }
}
