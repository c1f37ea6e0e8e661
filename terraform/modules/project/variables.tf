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
