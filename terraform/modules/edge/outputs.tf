output "address" {
  description = "IP address that the domain's A record must hold"
  value       = google_compute_global_address.this.address
}

output "url" {
  description = "Address of the API"
  value       = "https://${var.domain}"
}
