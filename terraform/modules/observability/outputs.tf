output "dashboard" {
  description = "Address of the dashboard in the console"
  value       = "https://console.cloud.google.com/monitoring/dashboards/builder/${basename(google_monitoring_dashboard.this.id)}?project=${var.project_id}"
}

output "email_channel" {
  description = "The channel of alert_email; null without one"
  value       = one(google_monitoring_notification_channel.email[*].id)
}
