# The parts that others are made of: names, numbers, the project itself.
module "names" {
  source = "../../modules/names"

  project_id = var.project_id
  name       = var.name
}

module "policy" {
  source = "../../modules/policy"
}

module "project" {
  source = "../../modules/project"

  project_id = var.project_id
  extra_apis = setunion(
    var.domain == null ? [] : ["compute.googleapis.com"],
    var.billing_account == null ? [] : ["billingbudgets.googleapis.com"],
  )
}
