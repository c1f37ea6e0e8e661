output "id" {
  description = "The budget's full name"
  value       = google_billing_budget.this.id
}
