# --- Where -------------------------------------------------------------------------------------
variable "project_id" {
  description = "Google Cloud project; it must exist and have billing"
  type        = string
}

variable "region" {
  description = "Region of the services, records, images and messages"
  type        = string
  default     = "europe-west1"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region such as europe-west1, not a zone."
  }

  # https://cloud.google.com/about/locations, November 2026
  validation {
    condition = contains([
      "africa-south1", "asia-east1", "asia-east2", "asia-northeast1", "asia-northeast2", "asia-northeast3", "asia-south1", "asia-south2",
      "asia-southeast1", "asia-southeast2", "australia-southeast1", "australia-southeast2", "europe-central2", "europe-north1",
      "europe-southwest1", "europe-west1", "europe-west10", "europe-west12", "europe-west2", "europe-west3", "europe-west4", "europe-west6",
      "europe-west8", "europe-west9", "me-central1", "me-central2", "me-west1", "northamerica-northeast1", "northamerica-northeast2",
      "southamerica-east1", "southamerica-west1", "us-central1", "us-east1", "us-east4", "us-east5", "us-south1", "us-west1", "us-west2",
      "us-west3", "us-west4",
    ], var.region)
    error_message = "Cloud Run, Firestore, Pub/Sub, Cloud Scheduler and Artifact Registry are not all known to be in this region. If they are by now, add it to the list in variables.tf."
  }
}

variable "name" {
  description = "Prefix of every name, which separates installations in one project"
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
  description = "Whether an API with a domain also serves its run.app address. Releases can then test a new revision before it gets traffic, but clients can bypass the rate limit"
  type        = bool
  default     = false
}

variable "public" {
  description = "Whether everyone on the internet can reach the API, which then requires a key; otherwise only api_invokers can"
  type        = bool
  default     = false
}

variable "api_invokers" {
  description = "IAM members that may call an API that is not public, such as user:ada@example.com"
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.api_invokers : can(regex("^(user|group|serviceAccount|domain|principal|principalSet):", member))])
    error_message = "IAM members, such as user:ada@example.com."
  }
}

variable "api_keys" {
  description = "Whether the API requires a key: required or off"
  type        = string
  default     = "required"

  validation {
    condition     = var.api_keys == "required" || !var.public
    error_message = "A public API requires keys."
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
  description = "The workers' first image (null is a placeholder until the first release) and the instances of each service: interactive for single uploads, batch for jobs, notify for webhooks and e-mail. concurrency is above what the CPUs classify, so that the next images are fetched meanwhile; that of notify is above the 16 notifications that wait for their receivers at once"
  type = object({
    image = optional(string)
    interactive = optional(object({
      cpu           = optional(number, 2)
      memory        = optional(string, "2Gi")
      cpu_idle      = optional(bool, true)
      concurrency   = optional(number, 16)
      min_instances = optional(number, 0)
      max_instances = optional(number, 10)
    }), {})
    batch = optional(object({
      cpu           = optional(number, 2)
      memory        = optional(string, "2Gi")
      cpu_idle      = optional(bool, true)
      concurrency   = optional(number, 16)
      min_instances = optional(number, 0)
      max_instances = optional(number, 10)
    }), {})
    notify = optional(object({
      cpu           = optional(number, 1)
      memory        = optional(string, "1Gi")
      cpu_idle      = optional(bool, true)
      concurrency   = optional(number, 32)
      min_instances = optional(number, 0)
      max_instances = optional(number, 5)
    }), {})
  })
  default = {}

  validation {
    condition     = alltrue([for worker in [var.worker.interactive, var.worker.batch] : worker.concurrency >= worker.cpu && worker.concurrency <= 16 * worker.cpu])
    error_message = "concurrency is between 1 and 16 for each CPU: more requests would only wait inside an instance."
  }

  validation {
    condition     = var.worker.notify.concurrency > 16 && var.worker.notify.concurrency <= 250
    error_message = "concurrency of notify is between 17 and 250: the worker delivers 16 notifications at once."
  }
}

variable "model_uri" {
  description = "Model: gs://bucket/folder of an existing bucket, or a folder of the container image; null for the default model. A container's disk is its memory, so a model from a bucket takes memory of each worker twice"
  type        = string
  default     = null
}

variable "extra_model_uris" {
  description = "Other models that requests may name, in the same form, such as the previous one while a new one comes into service"
  type        = list(string)
  default     = []
}

variable "metrics" {
  description = "Whether the services serve /metrics. Those of the API are as public as the API"
  type        = bool
  default     = false
}

variable "thumbnails" {
  description = "Whether the workers make a thumbnail of each image, and the API serves it; docs/cost.md has the price"
  type        = bool
  default     = false
}

variable "extra_settings" {
  description = "Further settings for both services, by their names in docs/settings.md"
  type        = map(string)
  default     = {}
}

variable "key_secret_version" {
  description = "Increase it to create a new secret behind the API keys. Every existing key becomes invalid"
  type        = number
  default     = 1
}

variable "key_secret_read_version" {
  description = "Version of the secret that the API reads, after you added one with several values to rotate it; null for the version that Terraform made"
  type        = string
  default     = null

  validation {
    condition     = var.key_secret_read_version == null ? true : can(regex("^[1-9][0-9]*$", var.key_secret_read_version))
    error_message = "The number of a version."
  }
}

variable "email" {
  description = "Mail server for jobs' notifications: a secret of this project whose value is SMTP_URL, its version, the sender, and the domains that e-mail may go to (empty: the domain of the sender; *: every domain); null sends none"
  type = object({
    secret          = string
    version         = optional(string, "latest")
    from            = string
    allowed_domains = optional(list(string), [])
  })
  default = null
}

variable "import_buckets" {
  description = "Existing buckets that jobs may import images from (gs_prefix). Every client that may create jobs can read them"
  type        = list(string)
  default     = []
}

# --- What is kept ------------------------------------------------------------------------------
variable "deletion_protection" {
  description = "Whether the whole installation refuses to be deleted or moved; false before tearing down"
  type        = bool
  default     = true
}

variable "force_destroy_images" {
  description = "Whether terraform destroy may delete the bucket with its images; false refuses the whole destroy"
  type        = bool
  default     = false
}

variable "point_in_time_recovery" {
  description = "Whether each state of the records of the last 7 days can be restored. It costs storage"
  type        = bool
  default     = true
}

variable "images" {
  description = "Days after which images move to a cheaper class or are deleted (null: never), and days for which a deleted image can be restored"
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

variable "github_environment" {
  description = "The one GitHub environment whose jobs deploy; .github/workflows/deploy.yml names it"
  type        = string
  default     = "production"
}

# --- Operation ---------------------------------------------------------------------------------
variable "alert_email" {
  description = "E-mail address for alerts and for the budget; null for none"
  type        = string
  default     = null
}

variable "notification_channels" {
  description = "Further notification channels of the alerts that exist already; a budget takes only budget_channels"
  type        = list(string)
  default     = []
}

variable "runbook_url" {
  description = "URL of docs/operations/alerts.md; null derives it from github_repository"
  type        = string
  default     = null
}

variable "alert_thresholds" {
  description = "When alerts fire; see modules/observability"
  type = object({
    dead_letter_seconds    = optional(number)
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

variable "budget_channels" {
  description = "Further e-mail channels of the budget that exist already, as projects/PROJECT/notificationChannels/NUMBER"
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.budget_channels) <= (var.alert_email == null ? 5 : 4)
    error_message = "A budget takes at most five channels, that of alert_email among them."
  }

  validation {
    condition     = alltrue([for channel in var.budget_channels : can(regex("^projects/[^/]+/notificationChannels/[0-9]+$", channel))])
    error_message = "As projects/PROJECT/notificationChannels/NUMBER."
  }
}

variable "monthly_budget" {
  description = "Budget of a month, in whole units of the billing account's currency"
  type        = number
  default     = 50
}

variable "propagation_seconds" {
  description = "Seconds that the first apply waits: after an API is enabled, until all of Google knows it, and after a metric is created, until an alert can name it"
  type = object({
    apis    = optional(number, 90)
    metrics = optional(number, 600)
  })
  default = {}
}
