terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 7.0"
    }
    random = {
      source  = "hashicorp/random"
      version = "~> 3.7"
    }
    time = {
      source  = "hashicorp/time"
      version = "~> 0.13"
    }
  }
}

provider "google" {
  project = var.project_id
  region  = var.region

  # Some APIs (budgets) must know whose quota a person's own credentials use.
  user_project_override = true
  billing_project       = var.project_id

  default_labels = {
    application = var.name
    managed_by  = "terraform"
  }
}
