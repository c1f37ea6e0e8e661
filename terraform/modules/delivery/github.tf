locals {
  github = var.github_repository == null ? 0 : 1

  # GitHub's own claims: https://docs.github.com/actions/reference/openid-connect-reference
  # A job gets the environment's claim only after the rules of the environment have passed.
  conditions = compact([
    local.github == 1 ? "assertion.repository == '${var.github_repository}'" : "",
    var.github_repository_id == null ? "" : "assertion.repository_id == '${var.github_repository_id}'",
    "assertion.ref == 'refs/heads/${var.github_branch}'",
    "assertion.ref_type == 'branch'",
    "assertion.environment == '${var.github_environment}'",
    "assertion.workflow_ref == '${coalesce(var.github_repository, "none")}/.github/workflows/${var.github_workflow}@refs/heads/${var.github_branch}'",
  ])
}

# Google reserves the name of a deleted pool for 30 days. So each new pool gets a name of its own.
resource "random_id" "pool" {
  count = local.github

  byte_length = 2
}

resource "google_iam_workload_identity_pool" "github" {
  count = local.github

  project                   = var.project_id
  workload_identity_pool_id = "${var.prefix}-github-${random_id.pool[0].hex}"
  display_name              = "GitHub Actions"
}

resource "google_iam_workload_identity_pool_provider" "github" {
  #checkov:skip=CKV_GCP_125:Repository, branch, environment and workflow are compared with claims of their own
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
    "attribute.workflow"   = "assertion.workflow_ref"
  }

  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}
