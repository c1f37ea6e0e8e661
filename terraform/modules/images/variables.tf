variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "name" {
  description = "Name of the bucket"
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "location" {
  description = "Region of the images and of the services"
  type        = string
}

variable "writers" {
  description = "E-mails of the accounts that store, read, list and delete objects, by service"
  type        = map(string)
}

variable "readers" {
  description = "E-mails of the accounts that only read and list objects, by service"
  type        = map(string)
}

variable "coldline_after_days" {
  description = "Days after which an image moves to a cheaper class that costs more to read; null never moves it"
  type        = number
  default     = null

  validation {
    condition     = var.coldline_after_days == null ? true : var.coldline_after_days >= 30
    error_message = "At least 30 days."
  }
}

variable "delete_after_days" {
  description = "Days after which an image is deleted; its labels stay. Null: never"
  type        = number
  default     = null

  validation {
    condition     = var.delete_after_days == null ? true : var.delete_after_days >= 8
    error_message = "At least 8 days: a message may wait for its image for 7."
  }
}

variable "soft_delete_days" {
  description = "Days for which a deleted image can be restored; 0 turns this off"
  type        = number
  default     = 7

  validation {
    condition     = var.soft_delete_days == 0 || (var.soft_delete_days >= 7 && var.soft_delete_days <= 90)
    error_message = "Either 0 or 7 to 90 days."
  }
}

variable "force_destroy" {
  description = "Whether terraform destroy may delete a bucket that still has images"
  type        = bool
  default     = false
}
