variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "prefix" {
  description = "What the secrets' names begin with"
  type        = string
}

variable "secrets" {
  description = "Secrets to make. A higher version makes a new value; format is text, or whsec for a Standard Webhooks key"
  type = map(object({
    version = optional(number, 1)
    format  = optional(string, "text")
  }))

  validation {
    condition     = alltrue([for name in keys(var.secrets) : can(regex("^[a-z][a-z0-9-]*$", name))])
    error_message = "Lower-case letters, digits and hyphens."
  }

  validation {
    condition     = alltrue([for secret in values(var.secrets) : contains(["text", "whsec"], secret.format)])
    error_message = "A format is text or whsec."
  }

  validation {
    condition     = alltrue([for secret in values(var.secrets) : secret.version >= 1])
    error_message = "Versions begin at 1."
  }
}

variable "readers" {
  description = "E-mails of the accounts that read every one of them, by any name"
  type        = map(string)
}
