variable "model_uri" {
  description = "Model of every service: gs://bucket/folder, or a folder of the container image; null for the default model"
  type        = string
  default     = null
}

variable "extra_model_uris" {
  description = "Other models that requests may name, in the same form"
  type        = list(string)
  default     = []
}

variable "import_buckets" {
  description = "Existing buckets whose objects the API may list and read, for jobs"
  type        = list(string)
  default     = []
}

variable "images_bucket" {
  description = "Name of the bucket of the images"
  type        = string
}

variable "api_account" {
  description = "E-mail of the API's account: reads the model's manifest and the imports"
  type        = string
}

variable "worker_accounts" {
  description = "E-mails of the workers' accounts, by service: they read every model"
  type        = map(string)
}
