variable "project_id" {
  description = "Google Cloud project"
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "A project's id has 6 to 30 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "name" {
  description = "Prefix of every name, which separates installations in one project"
  type        = string

  # The longest name is NAME-interactive, of a service account, which has at most 30 characters.
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,16}[a-z0-9]$", var.name)) && !strcontains(var.name, "--")
    error_message = "A name has 4 to 18 lower-case letters, digits and single hyphens, and begins with a letter."
  }

  validation {
    condition     = !startswith(var.name, "goog") && !startswith(var.name, "gcp-")
    error_message = "Names that begin with goog or gcp- are Google's own."
  }
}
