variable "model_uri" {
  description = "Model of both services: gs://bucket/folder, or a folder of the images; null for the one they bring"
  type        = string
  default     = null
}

variable "extra_model_uris" {
  description = "Further models of the worker, likewise"
  type        = list(string)
  default     = []
}

variable "api_account" {
  description = "E-mail of the API's account: reads the model's manifest"
  type        = string
}

variable "worker_account" {
  description = "E-mail of the worker's account: reads every model"
  type        = string
}
