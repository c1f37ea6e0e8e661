resource "google_compute_security_policy" "this" {
  #checkov:skip=CKV_GCP_73:There is no Java here, and rules on bodies take photographs for attacks
  project     = var.project_id
  name        = "${var.name}-throttle"
  description = "So many requests a minute for one address"
  type        = "CLOUD_ARMOR"

  rule {
    description = "Throttle each address"
    priority    = 1000
    action      = "throttle"

    match {
      versioned_expr = "SRC_IPS_V1"
      config {
        src_ip_ranges = ["*"]
      }
    }

    rate_limit_options {
      conform_action = "allow"
      exceed_action  = "deny(429)"
      enforce_on_key = "IP"

      rate_limit_threshold {
        count        = var.requests_per_minute
        interval_sec = 60
      }
    }
  }

  rule {
    description = "Everything else"
    priority    = 2147483647
    action      = "allow"

    match {
      versioned_expr = "SRC_IPS_V1"
      config {
        src_ip_ranges = ["*"]
      }
    }
  }
}
