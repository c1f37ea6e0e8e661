mock_provider "google" {}

variables {
  project_id = "example-project"
  region     = "europe-west1"
  name       = "glimpse"
  domain     = "labels.example.com"
  service    = "glimpse-api"
}

run "https_only" {
  command = plan

  assert {
    condition     = google_compute_url_map.http.default_url_redirect[0].https_redirect
    error_message = "Port 80 leads to port 443."
  }

  assert {
    condition     = google_compute_ssl_policy.this.profile == "MODERN" && google_compute_ssl_policy.this.min_tls_version == "TLS_1_2"
    error_message = "Modern TLS."
  }
}

run "throttled" {
  command = plan

  assert {
    condition     = anytrue([for rule in google_compute_security_policy.this.rule : rule.action == "throttle"])
    error_message = "Each address has its limit."
  }

  assert {
    condition     = anytrue([for rule in google_compute_security_policy.this.rule : rule.priority == 2147483647 && rule.action == "allow"])
    error_message = "There is a default rule."
  }
}

run "not_a_host_name" {
  command = plan
  variables {
    domain = "https://labels.example.com"
  }
  expect_failures = [var.domain]
}
