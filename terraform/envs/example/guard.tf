# Refuses a destroy, or a change that would replace everything, before anything is deleted. It depends on
# every module, so Terraform destroys it first. Without it, deletion protection of the services and of the
# databases would stop a destroy in the middle, after the registry, the messages and the alerts are gone.
resource "terraform_data" "guard" {
  # A destroy-time provisioner reads only what the state has: an apply has to change it first.
  input = {
    protected = var.deletion_protection || !var.force_destroy_images
  }
  triggers_replace = [var.project_id, var.region, var.name]

  provisioner "local-exec" {
    when    = destroy
    command = self.input.protected ? "echo 'Refused: set deletion_protection = false and force_destroy_images = true, then apply, before you destroy or move this installation.' && exit 1" : "echo 'Not protected.'"
  }

  depends_on = [
    module.api,
    module.buckets,
    module.budget,
    module.delivery,
    module.edge,
    module.images,
    module.keys,
    module.observability,
    module.project,
    module.queue,
    module.records,
    module.secrets,
    module.worker,
  ]
}
