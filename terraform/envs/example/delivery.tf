module "delivery" {
  source = "../../modules/delivery"

  project_id           = module.project.project_id
  region               = var.region
  registry_name        = module.names.registry
  deployer_name        = module.names.deployer
  prefix               = module.names.prefix
  github_repository    = var.github_repository
  github_repository_id = var.github_repository_id
  github_branch        = var.github_branch
  github_environment   = var.github_environment
}
