resource "google_monitoring_notification_channel" "email" {
  count = var.alert_email == null ? 0 : 1

  project      = var.project_id
  display_name = "${var.prefix} operators"
  type         = "email"

  labels = {
    email_address = var.alert_email
  }

  # A channel that a policy names cannot be deleted. So the policies change first.
  lifecycle {
    create_before_destroy = true
  }
}

locals {
  channels = concat(google_monitoring_notification_channel.email[*].id, var.notification_channels)
}
