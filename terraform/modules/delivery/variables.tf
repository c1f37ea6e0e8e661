variable "project_id" {
  description = "Google Cloud project"
  type        = string
}

variable "region" {
  description = "Region of the registry and of the services"
  type        = string
}

variable "registry_name" {
  description = "Name of the repository in Artifact Registry"
  type        = string
}

variable "deployer_name" {
  description = "Name of the account that GitHub deploys as"
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.deployer_name))
    error_message = "A service account's name has 6 to 30 lower-case letters, digits and hyphens."
  }
}

variable "prefix" {
  description = "Prefix of the name of the workload identity pool"
  type        = string
}

variable "keep_versions" {
  description = "Versions of each image that are kept at any age. A roll-back can go back that far"
  type        = number
  default     = 20

  validation {
    condition     = var.keep_versions >= 2
    error_message = "At least 2: the current one and the one before it."
  }
}

variable "delete_after_days" {
  description = "Days after which other versions are deleted"
  type        = number
  default     = 30

  validation {
    condition     = var.delete_after_days >= 1
    error_message = "At least 1."
  }
}

variable "github_repository" {
  description = "Repository that deploys, as owner/name; null for none"
  type        = string
  default     = null

  validation {
    condition     = var.github_repository == null ? true : can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "As owner/name."
  }
}

variable "github_repository_id" {
  description = "The repository's number, so that another repository that takes over its name has no access; null trusts the name"
  type        = string
  default     = null

  validation {
    condition     = var.github_repository_id == null ? true : can(regex("^[0-9]+$", var.github_repository_id))
    error_message = "Digits: gh api repos/OWNER/NAME --jq .id"
  }
}

variable "github_branch" {
  description = "The one branch that deploys"
  type        = string
  default     = "main"

  validation {
    condition     = can(regex("^[A-Za-z0-9._/-]+$", var.github_branch))
    error_message = "A branch's name, without refs/heads/."
  }
}

variable "github_environment" {
  description = "The one GitHub environment whose jobs deploy"
  type        = string
  default     = "production"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+$", var.github_environment))
    error_message = "Letters, digits, dots, underscores and hyphens."
  }
}

variable "github_workflow" {
  description = "File name of the one workflow that deploys"
  type        = string
  default     = "deploy.yml"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+\\.ya?ml$", var.github_workflow))
    error_message = "A file name that ends with .yml or .yaml."
  }
}
