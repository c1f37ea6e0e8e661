locals {
  github = var.github_repository == null ? 0 : 1

  # GitHub's own claims: https://docs.github.com/actions/reference/openid-connect-reference
  conditions = compact([
    local.github == 1 ? "assertion.repository == '${var.github_repository}'" : "",
    var.github_repository_id == null ? "" : "assertion.repository_id == '${var.github_repository_id}'",
    "assertion.ref == 'refs/heads/${var.github_branch}'",
    "assertion.ref_type == 'branch'",
  ])
}

resource "google_iam_workload_identity_pool" "github" {
  count = local.github

  project                   = var.project_id
  workload_identity_pool_id = "${var.prefix}-github"
  display_name              = "GitHub Actions"
}

resource "google_iam_workload_identity_pool_provider" "github" {
  #checkov:skip=CKV_GCP_125:Repository and branch are compared with claims of their own; sub is another with a GitHub environment
  count = local.github

  project                            = var.project_id
  workload_identity_pool_id          = google_iam_workload_identity_pool.github[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "github"
  display_name                       = "GitHub Actions"

  attribute_condition = join(" && ", local.conditions)
  attribute_mapping = {
    "google.subject"       = "assertion.sub"
    "attribute.repository" = "assertion.repository"
    "attribute.ref"        = "assertion.ref"
  }

  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}
