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
  description = "Names of topics, subscriptions and the account that pushes"
  type = object({
    topic                    = string
    subscription             = string
    dead_letter_topic        = string
    dead_letter_subscription = string
    push                     = string
    prefix                   = string
  })
}

variable "policy" {
  description = "How messages are delivered: the outputs of module policy"
  type = object({
    attempts           = number
    min_backoff        = number
    max_backoff        = number
    ack_deadline       = number
    retention          = number
    reconcile_schedule = string
    classify_path      = string
    dead_letter_path   = string
    reconcile_path     = string
  })

  validation {
    condition     = var.policy.attempts >= 5 && var.policy.attempts <= 100
    error_message = "Pub/Sub makes 5 to 100 attempts."
  }

  validation {
    condition     = var.policy.ack_deadline >= 10 && var.policy.ack_deadline <= 600
    error_message = "Pub/Sub waits 10 to 600 seconds for an answer."
  }

  validation {
    condition     = var.policy.min_backoff >= 0 && var.policy.min_backoff <= var.policy.max_backoff && var.policy.max_backoff <= 600
    error_message = "Pub/Sub waits 0 to 600 seconds between attempts, the minimum not above the maximum."
  }

  validation {
    condition     = var.policy.retention >= 600 && var.policy.retention <= 2678400
    error_message = "Pub/Sub keeps messages 10 minutes to 31 days."
  }
}

variable "publishers" {
  description = "E-mails of the accounts that publish and look whether the topic is there, by any name"
  type        = map(string)
}

variable "worker_url" {
  description = "Address of the worker, without a path"
  type        = string

  validation {
    condition     = can(regex("^https://[^/]+$", var.worker_url))
    error_message = "An https address without a path."
  }
}

variable "push_audience" {
  description = "Audience of the tokens that the worker is called with"
  type        = string
}
