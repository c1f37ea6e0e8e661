module "edge" {
  source = "../../modules/edge"
  count  = var.domain == null ? 0 : 1

  project_id          = module.project.project_id
  region              = var.region
  name                = module.names.prefix
  domain              = var.domain
  service             = module.api.name
  requests_per_minute = var.requests_per_minute
}
