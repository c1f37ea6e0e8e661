variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "name" {
  description = "Name of the database"
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,61}[a-z0-9]$", var.name))
    error_message = "A database's name has 4 to 63 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "location" {
  description = "Region of the database and of the services; it cannot be changed"
  type        = string
}

variable "accounts" {
  description = "E-mails of the accounts that read and write entities, by any name"
  type        = map(string)
}

variable "delete_protection" {
  description = "Whether the database refuses to be deleted"
  type        = bool
  default     = true
}

variable "point_in_time_recovery" {
  description = "Whether each state of the last 7 days can be read and restored. It costs storage"
  type        = bool
  default     = true
}
