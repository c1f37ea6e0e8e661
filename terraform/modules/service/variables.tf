variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "region" {
  description = "Region of the service"
  type        = string
}

variable "name" {
  description = "Name of the service and of its account"
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.name))
    error_message = "A service account's name has 6 to 30 lower-case letters, digits and hyphens."
  }
}

variable "description" {
  description = "Purpose of the service, for the console"
  type        = string
}

variable "image" {
  description = "Image of the first revision; deploys change it afterwards"
  type        = string
}

variable "cpu" {
  description = "CPUs of an instance"
  type        = number

  validation {
    condition     = contains([1, 2, 4, 6, 8], var.cpu)
    error_message = "Cloud Run gives 1, 2, 4, 6 or 8 CPUs to a service that takes several requests at once."
  }
}

variable "memory" {
  description = "Memory of an instance, such as 512Mi or 2Gi"
  type        = string

  validation {
    condition     = can(regex("^[1-9][0-9]*(Mi|Gi)$", var.memory))
    error_message = "A whole number with Mi or Gi."
  }
}

variable "cpu_idle" {
  description = "Whether an instance has CPU (and is billed for it) only during requests"
  type        = bool
}

variable "concurrency" {
  description = "Requests that an instance takes at once"
  type        = number

  validation {
    condition     = var.concurrency >= 1 && var.concurrency <= 1000
    error_message = "1 to 1000."
  }
}

variable "min_instances" {
  description = "Instances that are kept ready"
  type        = number
  default     = 0

  validation {
    condition     = var.min_instances >= 0 && var.min_instances <= var.max_instances
    error_message = "Not below 0, not above max_instances."
  }
}

variable "max_instances" {
  description = "Largest number of instances, which also limits the cost"
  type        = number

  validation {
    condition     = var.max_instances >= 1
    error_message = "At least 1."
  }
}

variable "timeout_seconds" {
  description = "Longest time of a request, in seconds"
  type        = number

  validation {
    condition     = var.timeout_seconds >= 1 && var.timeout_seconds <= 3600
    error_message = "1 to 3600 seconds."
  }
}

variable "execution_environment" {
  description = "EXECUTION_ENVIRONMENT_GEN1 starts faster, EXECUTION_ENVIRONMENT_GEN2 computes faster"
  type        = string

  validation {
    condition     = contains(["EXECUTION_ENVIRONMENT_GEN1", "EXECUTION_ENVIRONMENT_GEN2"], var.execution_environment)
    error_message = "One of the two."
  }
}

variable "environment" {
  description = "Settings, by their names in docs/settings.md"
  type        = map(string)
}

variable "secrets" {
  description = "Settings whose values are in Secret Manager"
  type = map(object({
    secret  = string
    version = string
  }))
  default = {}
}

variable "ingress" {
  description = "Networks that can reach it"
  type        = string

  validation {
    condition = contains(
      ["INGRESS_TRAFFIC_ALL", "INGRESS_TRAFFIC_INTERNAL_ONLY", "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER"],
      var.ingress,
    )
    error_message = "One of INGRESS_TRAFFIC_ALL, INGRESS_TRAFFIC_INTERNAL_ONLY, INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER."
  }
}

variable "audiences" {
  description = "Audiences that callers' tokens may have besides the service's own address"
  type        = list(string)
  default     = []
}

variable "public" {
  description = "Whether every caller is admitted; otherwise only the invokers"
  type        = bool
  default     = false
}

variable "invokers" {
  description = "IAM members that may call it, by any name"
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for member in values(var.invokers) : !contains(["allUsers", "allAuthenticatedUsers"], member)])
    error_message = "To admit every caller, set public."
  }
}

variable "deployers" {
  description = "E-mails of the accounts that deploy it, by any name"
  type        = map(string)
  default     = {}
}

variable "signs_links" {
  description = "Whether its account may sign links to images as itself"
  type        = bool
  default     = false
}

variable "deletion_protection" {
  description = "Whether Terraform refuses to delete the service"
  type        = bool
  default     = true
}
