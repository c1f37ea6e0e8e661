variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "prefix" {
  description = "Prefix of the names of metrics and alert policies"
  type        = string
}

variable "api_service" {
  description = "Name of the API's Cloud Run service"
  type        = string
}

variable "worker_services" {
  description = "Names of the worker's Cloud Run services"
  type        = list(string)
}

variable "subscriptions" {
  description = "Names of the push subscriptions, by their channels; dead letters aside"
  type        = map(string)

  validation {
    condition     = contains(keys(var.subscriptions), "notifications")
    error_message = "There is one of notifications, which have alerts of their own."
  }
}

variable "dead_letter_subscription" {
  description = "Name of the dead letters' push subscription"
  type        = string
}

variable "scheduler_jobs" {
  description = "Names of the jobs that call the worker regularly"
  type        = list(string)
}

variable "alert_email" {
  description = "E-mail address for alerts; null for none"
  type        = string
  default     = null

  validation {
    condition     = var.alert_email == null ? true : can(regex("^[^@\\s]+@[^@\\s]+$", var.alert_email))
    error_message = "An e-mail address."
  }
}

variable "notification_channels" {
  description = "Further channels that exist already, as projects/PROJECT/notificationChannels/NUMBER"
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[0-9]+$", channel))])
    error_message = "As projects/PROJECT/notificationChannels/NUMBER."
  }
}

variable "runbook_url" {
  description = "URL of docs/operations/alerts.md, to whose sections alerts link. Null: no links"
  type        = string
  default     = null

  validation {
    condition     = var.runbook_url == null ? true : startswith(var.runbook_url, "https://")
    error_message = "It begins with https://."
  }
}

variable "thresholds" {
  description = "When alerts fire: seconds that the oldest message may wait, by channel; notifications given up in an hour; shares of failed requests, 0 to 1; seconds within which 99 of 100 answers come; seconds that a dead letter may wait to be recorded"
  type = object({
    oldest_message_seconds = optional(map(number), {})
    notifications_given_up = optional(number, 10)
    api_error_ratio        = optional(number, 0.02)
    worker_error_ratio     = optional(number, 0.1)
    api_p99_seconds        = optional(number, 10)
    dead_letter_seconds    = optional(number, 900)
  })
  default = {}

  validation {
    condition     = var.thresholds.api_error_ratio > 0 && var.thresholds.api_error_ratio < 1 && var.thresholds.worker_error_ratio > 0 && var.thresholds.worker_error_ratio < 1
    error_message = "Ratios lie between 0 and 1."
  }

  validation {
    condition     = alltrue([for seconds in values(var.thresholds.oldest_message_seconds) : seconds > 0]) && var.thresholds.api_p99_seconds > 0 && var.thresholds.dead_letter_seconds > 0
    error_message = "Times are above 0."
  }

  validation {
    condition     = alltrue([for channel in keys(var.thresholds.oldest_message_seconds) : contains(keys(var.subscriptions), channel)])
    error_message = "oldest_message_seconds are by channel, such as images-high."
  }

  validation {
    condition     = var.thresholds.notifications_given_up >= 0
    error_message = "Not below 0."
  }
}

variable "propagation_seconds" {
  description = "Seconds to wait after a metric is created, until an alert policy can name it"
  type        = number
  default     = 600

  validation {
    condition     = var.propagation_seconds >= 0
    error_message = "At least 0."
  }
}
