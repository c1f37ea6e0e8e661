# Names, numbers and the project itself, which every other part uses.
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

  project_id          = var.project_id
  propagation_seconds = var.propagation_seconds.apis
  extra_apis = setunion(
    var.domain == null ? [] : ["compute.googleapis.com"],
    var.billing_account == null ? [] : ["billingbudgets.googleapis.com"],
  )
}
