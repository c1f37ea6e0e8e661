# It has no key: GitHub's token of one workflow, branch and environment is exchanged for its own.
resource "google_service_account" "deployer" {
  count = local.github

  project      = var.project_id
  account_id   = var.deployer_name
  display_name = "${var.prefix}: deploys from GitHub"
}

resource "google_service_account_iam_member" "github" {
  count = local.github

  service_account_id = google_service_account.deployer[0].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github[0].name}/attribute.repository/${var.github_repository}"
}
