variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "region" {
  description = "Region of the service behind the load balancer"
  type        = string
}

variable "name" {
  description = "Prefix of the names of the load balancer's parts"
  type        = string
}

variable "domain" {
  description = "Host name of the certificate, such as labels.example.com"
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.domain)) && length(var.domain) <= 63
    error_message = "A host name in lower case, without scheme, port or path, of at most 63 characters."
  }
}

variable "service" {
  description = "Name of the Cloud Run service to put behind it"
  type        = string
}

variable "requests_per_minute" {
  description = "Requests that one address may make in a minute before it gets 429"
  type        = number
  default     = 600

  validation {
    condition     = var.requests_per_minute >= 1
    error_message = "At least 1."
  }
}

variable "log_sample_rate" {
  description = "Share of the requests that the load balancer logs, 0 to 1; the API logs them too"
  type        = number
  default     = 0.1

  validation {
    condition     = var.log_sample_rate >= 0 && var.log_sample_rate <= 1
    error_message = "0 to 1."
  }
}
