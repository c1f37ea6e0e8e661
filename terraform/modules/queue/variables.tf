variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "project_number" {
  description = "The project's number, for the name of Pub/Sub's own account"
  type        = string
}

variable "region" {
  description = "Region of the scheduler's job, and where messages are kept"
  type        = string
}

variable "names" {
  description = "The account that pushes, and what names of topics, subscriptions and scheduled calls begin with"
  type = object({
    push   = string
    prefix = string
  })
}

variable "policy" {
  description = "The channels, how their messages are delivered, and when the worker is called: the outputs of module policy"
  type = object({
    channels = map(object({
      service      = string
      path         = string
      attempts     = number
      min_backoff  = number
      max_backoff  = number
      ack_deadline = number
      retention    = number
    }))
    dead_letters = object({
      name         = string
      service      = string
      path         = string
      min_backoff  = number
      max_backoff  = number
      ack_deadline = number
      retention    = number
    })
    reconcile_schedule = string
    reconcile_path     = string
    schedule           = string
    schedule_path      = string
  })

  validation {
    condition     = alltrue([for channel in values(var.policy.channels) : channel.attempts >= 5 && channel.attempts <= 100])
    error_message = "Pub/Sub makes 5 to 100 attempts."
  }

  validation {
    condition     = alltrue([for channel in concat(values(var.policy.channels), [var.policy.dead_letters]) : channel.ack_deadline >= 10 && channel.ack_deadline <= 600])
    error_message = "Pub/Sub waits 10 to 600 seconds for an answer."
  }

  validation {
    condition     = alltrue([for channel in concat(values(var.policy.channels), [var.policy.dead_letters]) : channel.min_backoff >= 0 && channel.min_backoff <= channel.max_backoff && channel.max_backoff <= 600])
    error_message = "Pub/Sub waits 0 to 600 seconds between attempts, the minimum not above the maximum."
  }

  validation {
    condition     = alltrue([for channel in concat(values(var.policy.channels), [var.policy.dead_letters]) : channel.retention >= 600 && channel.retention <= 2678400])
    error_message = "Pub/Sub keeps messages 10 minutes to 31 days."
  }
}

variable "publishers" {
  description = "E-mails of the accounts that publish messages and check whether the topics exist, by any name"
  type        = map(string)
}

variable "worker_urls" {
  description = "Addresses of the workers without a path, by service"
  type        = map(string)

  validation {
    condition     = alltrue([for url in values(var.worker_urls) : can(regex("^https://[^/]+$", url))])
    error_message = "An https address without a path."
  }

  validation {
    condition     = alltrue([for channel in concat(values(var.policy.channels), [var.policy.dead_letters]) : contains(keys(var.worker_urls), channel.service)])
    error_message = "Every channel's service needs an address."
  }
}

variable "push_audience" {
  description = "Audience of the tokens that the worker is called with"
  type        = string
}
