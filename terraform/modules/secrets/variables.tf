variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "prefix" {
  description = "Prefix of the names of secrets"
  type        = string
}

variable "secrets" {
  description = "Secrets to create, and the name of the one reader of each. A higher version creates a new value"
  type = map(object({
    version = optional(number, 1)
    reader  = string
  }))

  validation {
    condition     = alltrue([for name in keys(var.secrets) : can(regex("^[a-z][a-z0-9-]*$", name))])
    error_message = "Lower-case letters, digits and hyphens."
  }

  validation {
    condition     = alltrue([for secret in values(var.secrets) : secret.version >= 1])
    error_message = "Versions begin at 1."
  }
}

variable "given" {
  description = "Existing secrets of this project. For each, by a name of your choice: the secret's name, the version to read, and its one reader"
  type = map(object({
    secret  = string
    version = string
    reader  = string
  }))
  default = {}

  validation {
    condition     = alltrue([for name in keys(var.given) : !contains(keys(var.secrets), name)])
    error_message = "A secret is either made or given."
  }

  validation {
    condition     = alltrue([for given in values(var.given) : can(regex("^[A-Za-z0-9_-]{1,255}$", given.secret)) && can(regex("^(latest|[1-9][0-9]*)$", given.version))])
    error_message = "A secret's name without its project; a version's number, or latest."
  }
}

variable "readers" {
  description = "E-mails of the accounts that read secrets, by the names that the secrets use"
  type        = map(string)

  validation {
    condition     = alltrue([for secret in concat(values(var.secrets), values(var.given)) : contains(keys(var.readers), secret.reader)])
    error_message = "Every secret's reader must be one of readers."
  }
}
