# --- Where -------------------------------------------------------------------------------------
variable "project_id" {
  description = "Google Cloud project; it must exist and have billing"
  type        = string
}

variable "region" {
  description = "Region of everything: services, records, images, messages"
  type        = string
  default     = "europe-west1"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region such as europe-west1, not a zone."
  }
}

variable "name" {
  description = "What every name begins with; tells installations in one project apart"
  type        = string
  default     = "glimpse"
}

# --- Who gets in -------------------------------------------------------------------------------
variable "domain" {
  description = "Host name of the API, for a load balancer with certificate and throttling; null leaves the API at its run.app address"
  type        = string
  default     = null
}

variable "keep_run_address" {
  description = "Whether the API answers at its run.app address too although it has a domain: releases then try a new revision before it takes traffic, and the throttle can be walked around"
  type        = bool
  default     = false
}

variable "public" {
  description = "Whether anybody on the internet reaches the API (which asks for a key); otherwise only api_invokers do"
  type        = bool
  default     = false
}

variable "api_invokers" {
  description = "Who may call an API that is not public, as IAM members such as user:ada@example.com"
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.api_invokers : can(regex("^(user|group|serviceAccount|domain|principal|principalSet):", member))])
    error_message = "IAM members, such as user:ada@example.com."
  }
}

variable "api_keys" {
  description = "Whether callers of the API need a key of its own: required or off"
  type        = string
  default     = "required"

  validation {
    condition     = var.api_keys == "required" || !var.public
    error_message = "A public API asks for keys."
  }
}

variable "requests_per_minute" {
  description = "Requests that one address may make in a minute; needs a domain"
  type        = number
  default     = 600
}

# --- The services ------------------------------------------------------------------------------
variable "api" {
  description = "The API's first image and its instances; streams of live updates come on top of concurrency; an image of null is a placeholder until the first deploy"
  type = object({
    image         = optional(string)
    cpu           = optional(number, 1)
    memory        = optional(string, "1Gi")
    cpu_idle      = optional(bool, true)
    concurrency   = optional(number, 40)
    streams       = optional(number, 160)
    min_instances = optional(number, 0)
    max_instances = optional(number, 10)
  })
  default = {}
}

variable "worker" {
  description = "The worker's first image and its instances; requests_per_cpu lets the next images be fetched while others are classified, of which a fast model takes four together; waiting_requests leaves room for notifications, which wait for others and need no CPU"
  type = object({
    image            = optional(string)
    cpu              = optional(number, 2)
    memory           = optional(string, "2Gi")
    cpu_idle         = optional(bool, true)
    requests_per_cpu = optional(number, 4)
    waiting_requests = optional(number, 8)
    min_instances    = optional(number, 0)
    max_instances    = optional(number, 10)
  })
  default = {}

  validation {
    condition     = var.worker.requests_per_cpu >= 1 && var.worker.requests_per_cpu <= 8
    error_message = "requests_per_cpu lies between 1 and 8: more would only wait inside."
  }

  validation {
    condition     = var.worker.waiting_requests >= 0 && var.worker.waiting_requests <= 64
    error_message = "waiting_requests lies between 0 and 64: images may take that room too, and wait inside."
  }
}

variable "model_uri" {
  description = "Model: gs://bucket/folder of a bucket that exists already, or a folder of the images; null for the one they bring. A container's disk is its memory, so worker.memory holds a bucket's model once more"
  type        = string
  default     = null
}

variable "extra_model_uris" {
  description = "Further models that the worker answers for, likewise: the one before, while a new one comes into service"
  type        = list(string)
  default     = []
}

variable "metrics" {
  description = "Whether both services answer /metrics; the API's would be as public as the API"
  type        = bool
  default     = false
}

variable "extra_settings" {
  description = "Further settings for both services, by their names in docs/settings.md"
  type        = map(string)
  default     = {}
}

variable "key_secret_version" {
  description = "Raise it to make a new secret behind the API keys: every key given out becomes void"
  type        = number
  default     = 1
}

variable "email" {
  description = "Mail server for jobs' notifications: a secret of this project whose value is SMTP_URL, its version, the sender, and the domains that e-mail may go to (none: the sender's own; * any); null sends none"
  type = object({
    secret          = string
    version         = optional(string, "latest")
    from            = string
    allowed_domains = optional(list(string), [])
  })
  default = null
}

variable "import_buckets" {
  description = "Buckets that exist already and that jobs may take images from (gs_prefix), anybody's who may make jobs"
  type        = list(string)
  default     = []
}

# --- What is kept ------------------------------------------------------------------------------
variable "deletion_protection" {
  description = "Whether services and database refuse to be deleted; false before tearing down"
  type        = bool
  default     = true
}

variable "force_destroy_images" {
  description = "Whether terraform destroy may delete images that are still there"
  type        = bool
  default     = false
}

variable "point_in_time_recovery" {
  description = "Whether any state of the records of the last 7 days can be restored; costs storage"
  type        = bool
  default     = true
}

variable "images" {
  description = "Days after which images move to a cheaper class or are deleted (null for never), and in which a deleted one can be restored"
  type = object({
    coldline_after_days = optional(number)
    delete_after_days   = optional(number)
    soft_delete_days    = optional(number, 7)
  })
  default = {}
}

# --- Delivery ----------------------------------------------------------------------------------
variable "github_repository" {
  description = "Repository that deploys, as owner/name; null for none"
  type        = string
  default     = null
}

variable "github_repository_id" {
  description = "The same repository's number (gh api repos/OWNER/NAME --jq .id); null trusts the name"
  type        = string
  default     = null
}

variable "github_branch" {
  description = "The one branch that deploys"
  type        = string
  default     = "main"
}

# --- Operation ---------------------------------------------------------------------------------
variable "alert_email" {
  description = "E-mail address for alerts and for the budget; null for none"
  type        = string
  default     = null
}

variable "notification_channels" {
  description = "Further notification channels that exist already"
  type        = list(string)
  default     = []
}

variable "runbook_url" {
  description = "Where docs/operations/alerts.md can be read; null takes it from github_repository"
  type        = string
  default     = null
}

variable "alert_thresholds" {
  description = "When alerts fire; see modules/observability"
  type = object({
    oldest_message_seconds = optional(map(number))
    notifications_given_up = optional(number)
    api_error_ratio        = optional(number)
    worker_error_ratio     = optional(number)
    api_p99_seconds        = optional(number)
  })
  default = {}
}

variable "billing_account" {
  description = "Billing account, for a budget alert; null for none"
  type        = string
  default     = null
}

variable "monthly_budget" {
  description = "Budget of a month, in whole units of the billing account's currency"
  type        = number
  default     = 50
}
