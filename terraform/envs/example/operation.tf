locals {
  runbook_url = (
    var.runbook_url != null || var.github_repository == null
    ? var.runbook_url
    : "https://github.com/${var.github_repository}/blob/${var.github_branch}/docs/operations/alerts.md"
  )
}

module "observability" {
  source = "../../modules/observability"

  project_id               = module.project.project_id
  prefix                   = module.names.prefix
  api_service              = module.api.name
  worker_services          = local.worker_services
  subscriptions            = module.queue.subscriptions
  dead_letter_subscription = module.queue.dead_letter_subscription
  scheduler_jobs           = module.queue.scheduler_jobs
  alert_email              = var.alert_email
  notification_channels    = var.notification_channels
  runbook_url              = local.runbook_url
  thresholds               = var.alert_thresholds
  propagation_seconds      = var.propagation_seconds.metrics
}

module "budget" {
  source = "../../modules/budget"
  count  = var.billing_account == null ? 0 : 1

  billing_account       = var.billing_account
  project_number        = module.project.number
  name                  = module.names.prefix
  monthly_amount        = var.monthly_budget
  notification_channels = compact(concat([module.observability.email_channel], var.budget_channels))
}
