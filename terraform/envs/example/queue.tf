module "queue" {
  source = "../../modules/queue"

  project_id     = module.project.project_id
  project_number = module.project.number
  region         = var.region
  names          = module.names
  policy         = module.policy
  publishers     = merge({ api = module.api.account }, local.worker_accounts)
  worker_urls = {
    interactive = module.worker["interactive"].url
    batch       = module.worker["batch"].url
    notify      = module.worker["notify"].url
  }
  push_audience = module.names.push_audience
}
