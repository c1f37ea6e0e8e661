module "queue" {
  source = "../../modules/queue"

  project_id     = module.project.project_id
  project_number = module.project.number
  region         = var.region
  names          = module.names
  policy         = module.policy
  publishers     = { api = module.api.account, worker = module.worker.account }
  worker_url     = module.worker.url
  push_audience  = module.names.push_audience
}
