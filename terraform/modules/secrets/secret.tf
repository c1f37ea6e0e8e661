resource "google_secret_manager_secret" "this" {
  for_each = var.secrets

  project   = var.project_id
  secret_id = "${var.prefix}-${each.key}"

  replication {
    auto {}
  }
}

# Values are made here and written once: neither plan nor state has them.
ephemeral "random_password" "value" {
  for_each = var.secrets

  length  = 64
  special = false
}

resource "google_secret_manager_secret_version" "this" {
  for_each = var.secrets

  secret                 = google_secret_manager_secret.this[each.key].id
  secret_data_wo         = ephemeral.random_password.value[each.key].result
  secret_data_wo_version = each.value.version

  # The revision before the change still reads the old value, and a roll-back needs it.
  deletion_policy = "ABANDON"

  lifecycle {
    create_before_destroy = true
  }
}

locals {
  # One reader for each secret. The names are known before the secrets exist.
  grants = merge(
    { for name, made in var.secrets : name => { secret = "${var.prefix}-${name}", reader = made.reader } },
    { for name, given in var.given : name => { secret = given.secret, reader = given.reader } },
  )
}

resource "google_secret_manager_secret_iam_member" "reader" {
  for_each = local.grants

  project   = var.project_id
  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${var.readers[each.value.reader]}"

  depends_on = [google_secret_manager_secret.this]
}
