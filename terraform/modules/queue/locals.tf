locals {
  # Pub/Sub's own account in this project.
  pubsub_agent = "serviceAccount:service-${var.project_number}@gcp-sa-pubsub.iam.gserviceaccount.com"

  dead_letters = "${var.names.prefix}-${var.policy.dead_letters.name}"

  # Every service publishes to every channel.
  publishers = {
    for pair in setproduct(keys(var.policy.channels), keys(var.publishers)) :
    "${pair[0]}/${pair[1]}" => { channel = pair[0], account = var.publishers[pair[1]] }
  }
}
