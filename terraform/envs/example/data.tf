# What is kept: images, records, secrets. And what is read: models.
module "images" {
  source = "../../modules/images"

  project_id          = module.project.project_id
  name                = module.names.bucket
  location            = var.region
  api_account         = module.api.account
  worker_account      = module.worker.account
  import_buckets      = var.import_buckets
  coldline_after_days = var.images.coldline_after_days
  delete_after_days   = var.images.delete_after_days
  soft_delete_days    = var.images.soft_delete_days
  force_destroy       = var.force_destroy_images
}

module "models" {
  source = "../../modules/models"

  model_uri        = var.model_uri
  extra_model_uris = var.extra_model_uris
  api_account      = module.api.account
  worker_account   = module.worker.account
}

module "records" {
  source = "../../modules/records"

  project_id             = module.project.project_id
  name                   = module.names.database
  location               = var.region
  accounts               = { api = module.api.account, worker = module.worker.account }
  delete_protection      = var.deletion_protection
  point_in_time_recovery = var.point_in_time_recovery
}

module "secrets" {
  source = "../../modules/secrets"

  project_id = module.project.project_id
  prefix     = module.names.prefix
  readers    = { api = module.api.account, worker = module.worker.account }
  secrets    = { api-keys = { version = var.key_secret_version } }
  given      = var.email == null ? {} : { smtp = { secret = var.email.secret, version = var.email.version } }
}
