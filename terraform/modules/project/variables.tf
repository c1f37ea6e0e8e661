variable "project_id" {
  description = "Google Cloud project; it must exist and have billing"
  type        = string
}

variable "extra_apis" {
  description = "APIs to enable besides those that Glimpse always needs"
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for api in var.extra_apis : endswith(api, ".googleapis.com")])
    error_message = "An API's name ends with .googleapis.com."
  }
}

variable "propagation_seconds" {
  description = "Seconds to wait after an API is enabled, until every Google server knows it"
  type        = number
  default     = 90

  validation {
    condition     = var.propagation_seconds >= 0
    error_message = "At least 0."
  }
}
