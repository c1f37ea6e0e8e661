variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "policy" {
  description = "How messages are delivered: the outputs of module policy"
  type = object({
    attempts    = number
    max_backoff = number
    lease       = number
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

variable "keys_database" {
  description = "Datastore database of the API keys and limits, which only the API reaches"
  type        = string
}

variable "queue" {
  description = "Prefix of topics and subscriptions, and the account and audience of pushes"
  type = object({
    topic_prefix  = string
    push_audience = string
    push_account  = string
  })
}

variable "public_url" {
  description = "Base URL of links in responses. Empty: links are relative"
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(https://.*[^/])?$", var.public_url))
    error_message = "It begins with https:// and does not end with a slash."
  }
}

variable "worker_cpus" {
  description = "CPUs of an instance of each worker, by service. An instance classifies as many images at once"
  type        = map(number)

  validation {
    condition     = alltrue([for cpus in values(var.worker_cpus) : cpus >= 1 && floor(cpus) == cpus])
    error_message = "A whole number of CPUs."
  }
}

variable "api_streams" {
  description = "Streams of live updates that an instance of the API holds at once; 0 for none"
  type        = number

  validation {
    condition     = var.api_streams >= 0 && floor(var.api_streams) == var.api_streams
    error_message = "A whole number, not below 0."
  }
}

variable "email" {
  description = "Sender of e-mail, and the domains that e-mail may go to (empty: the domain of the sender; *: every domain); null sends none"
  type = object({
    from            = string
    allowed_domains = optional(list(string), [])
  })
  default = null

  validation {
    condition     = var.email == null ? true : can(regex("^[^@\\s]+@[^@\\s]+$", var.email.from))
    error_message = "An e-mail address."
  }
}

variable "model_uri" {
  description = "Model of the services: gs://bucket/folder, or a folder of the container image; null for the default model"
  type        = string
  default     = null

  validation {
    condition     = var.model_uri == null ? true : can(regex("^(gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/.*[^/]|[^:]+)$", var.model_uri))
    error_message = "A folder, or gs://bucket/folder."
  }
}

variable "extra_model_uris" {
  description = "Other models that requests may name, in the same form"
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for uri in var.extra_model_uris : can(regex("^(gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/[^,]*[^/,]|[^:,]+)$", uri))])
    error_message = "Folders, or gs://bucket/folder, without commas."
  }
}

variable "import_buckets" {
  description = "Buckets that jobs may import images from. Every client that may create jobs can read them"
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.import_buckets : can(regex("^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$", name))])
    error_message = "Names of buckets, without gs://."
  }
}

variable "api_keys" {
  description = "Whether the API requires a key: required or off"
  type        = string
  default     = "required"

  validation {
    condition     = contains(["required", "off"], var.api_keys)
    error_message = "Either required or off."
  }
}

variable "metrics" {
  description = "Whether the services serve /metrics. Those of the API are as public as the API"
  type        = bool
  default     = false
}

variable "thumbnails" {
  description = "Whether the workers make a thumbnail of each image, and the API serves it"
  type        = bool
  default     = false
}

variable "log_level" {
  description = "Lowest severity that is logged: debug, info, warning or error"
  type        = string
  default     = "info"

  validation {
    condition     = contains(["debug", "info", "warning", "error"], var.log_level)
    error_message = "One of debug, info, warning, error."
  }
}

variable "extra" {
  description = "Further settings for both services, by their names in docs/settings.md"
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.extra) : can(regex("^[A-Z][A-Z0-9_]*$", name))])
    error_message = "Settings are named in capitals."
  }

  # They come with a grant, or with a secret that must not be in the environment as plain text.
  validation {
    condition = length(setintersection(keys(var.extra), [
      "BUCKET", "DATASTORE_DATABASE", "DATASTORE_KEYS_DATABASE", "EXTRA_MODEL_URIS", "IMPORT_BUCKETS", "KEY_SECRET", "MODEL_URI", "SMTP_URL", "THUMBNAILS",
    ])) == 0
    error_message = "Use the variable of that name instead: model_uri, extra_model_uris, import_buckets, thumbnails, email. Terraform sets BUCKET, DATASTORE_DATABASE, DATASTORE_KEYS_DATABASE and KEY_SECRET."
  }
}
