variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "policy" {
  description = "How messages are delivered: the outputs of module policy"
  type = object({
    attempts     = number
    min_backoff  = number
    max_backoff  = number
    ack_deadline = number
    lease        = number
    retention    = number
    stale_after  = number

    dead_letter_retention = number
  })
}

variable "bucket" {
  description = "Bucket of the images"
  type        = string
}

variable "database" {
  description = "Datastore database of the records"
  type        = string
}

variable "queue" {
  description = "Names of topics and subscriptions, and who pushes with which audience"
  type = object({
    topic                    = string
    subscription             = string
    dead_letter_topic        = string
    dead_letter_subscription = string
    push_audience            = string
    push_account             = string
  })
}

variable "public_url" {
  description = "What links in answers begin with; empty makes them relative"
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(https://.*[^/])?$", var.public_url))
    error_message = "It begins with https:// and does not end with a slash."
  }
}

variable "worker_cpus" {
  description = "CPUs of a worker instance: so many images are classified at once"
  type        = number

  validation {
    condition     = var.worker_cpus >= 1 && floor(var.worker_cpus) == var.worker_cpus
    error_message = "A whole number of CPUs."
  }
}

variable "api_keys" {
  description = "Whether callers of the API need a key: required or off"
  type        = string
  default     = "required"

  validation {
    condition     = contains(["required", "off"], var.api_keys)
    error_message = "Either required or off."
  }
}

variable "metrics" {
  description = "Whether both services answer /metrics; the API's would be as public as the API"
  type        = bool
  default     = false
}

variable "log_level" {
  description = "Least severity to log: debug, info, warning or error"
  type        = string
  default     = "info"

  validation {
    condition     = contains(["debug", "info", "warning", "error"], var.log_level)
    error_message = "One of debug, info, warning, error."
  }
}

variable "extra" {
  description = "Further settings for both services, by their names in README"
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.extra) : can(regex("^[A-Z][A-Z0-9_]*$", name))])
    error_message = "Settings are named in capitals."
  }
}
