variable "billing_account" {
  description = "The billing account's id, such as 012345-6789AB-CDEF01"
  type        = string

  validation {
    condition     = can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.billing_account))
    error_message = "Three groups of six hexadecimal digits in capitals."
  }
}

variable "project_number" {
  description = "Number of the project whose costs the budget counts"
  type        = string
}

variable "name" {
  description = "Name of the budget"
  type        = string
}

variable "monthly_amount" {
  description = "Budget of a month, in whole units of the billing account's currency"
  type        = number

  validation {
    condition     = var.monthly_amount >= 1 && floor(var.monthly_amount) == var.monthly_amount
    error_message = "A whole number, at least 1."
  }
}

variable "notification_channels" {
  description = "E-mail channels for the alert, besides the billing account's administrators; a budget takes at most five, and no other type"
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.notification_channels) <= 5
    error_message = "A budget takes at most five channels."
  }
}
