output "dashboard" {
  description = "Address of the dashboard in the console"
  value       = "https://console.cloud.google.com/monitoring/dashboards/builder/${basename(google_monitoring_dashboard.this.id)}?project=${var.project_id}"
}

output "notification_channels" {
  description = "Who is told of alerts"
  value       = local.channels
}
