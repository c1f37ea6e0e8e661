locals {
  mebibytes = tonumber(regex("^[0-9]+", var.memory)) * (endswith(var.memory, "Gi") ? 1024 : 1)

  # https://cloud.google.com/run/docs/configuring/services/memory-limits
  least_for_cpus        = lookup({ "4" = 2048, "6" = 4096, "8" = 4096 }, tostring(var.cpu), 128)
  least_for_environment = var.execution_environment == "EXECUTION_ENVIRONMENT_GEN2" || !var.cpu_idle ? 512 : 128
  least                 = max(local.least_for_cpus, local.least_for_environment)
  most                  = lookup({ "1" = 4096, "2" = 8192, "4" = 16384, "6" = 24576 }, tostring(var.cpu), 32768)
}

resource "google_cloud_run_v2_service" "this" {
  project     = var.project_id
  location    = var.region
  name        = var.name
  description = var.description

  ingress              = var.ingress
  invoker_iam_disabled = var.public
  custom_audiences     = var.audiences
  deletion_protection  = var.deletion_protection

  template {
    service_account                  = google_service_account.this.email
    execution_environment            = var.execution_environment
    max_instance_request_concurrency = var.concurrency
    timeout                          = "${var.timeout_seconds}s"

    scaling {
      min_instance_count = var.min_instances
      max_instance_count = var.max_instances
    }

    containers {
      image = var.image

      ports {
        container_port = 8080
      }

      resources {
        limits = {
          cpu    = tostring(var.cpu)
          memory = var.memory
        }
        cpu_idle          = var.cpu_idle
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = var.environment
        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "env" {
        for_each = var.secrets
        content {
          name = env.key
          value_source {
            secret_key_ref {
              secret  = env.value.secret
              version = env.value.version
            }
          }
        }
      }

      # Four minutes at most: a large model from a bucket takes a while. /started depends on no other
      # service, so that instances can start while one of them is down.
      startup_probe {
        period_seconds    = 5
        timeout_seconds   = 4
        failure_threshold = 48

        http_get {
          path = "/started"
        }
      }

      liveness_probe {
        period_seconds    = 15
        timeout_seconds   = 5
        failure_threshold = 4

        http_get {
          path = "/health"
        }
      }
    }
  }

  lifecycle {
    # Deploys replace the image and shift traffic between revisions (docs/operations/google-cloud.md); an apply
    # must not take either back. client and client_version name the tool that changed the service last, and gcloud
    # adds labels and annotations to the template.
    ignore_changes = [
      client,
      client_version,
      template[0].annotations,
      template[0].containers[0].image,
      template[0].labels,
      traffic,
    ]

    precondition {
      condition     = local.mebibytes >= local.least && local.mebibytes <= local.most
      error_message = "${var.name}: with cpu = ${var.cpu}, memory must be between ${local.least}Mi and ${local.most}Mi, and is ${var.memory}. Cloud Run needs at least 512Mi for GEN2 and for CPU that is always on."
    }
  }

  depends_on = [google_project_iam_member.traces, google_service_account_iam_member.signer]
}

resource "google_cloud_run_v2_service_iam_member" "invoker" {
  for_each = var.invokers

  project  = var.project_id
  location = var.region
  name     = google_cloud_run_v2_service.this.name
  role     = "roles/run.invoker"
  member   = each.value
}

resource "google_cloud_run_v2_service_iam_member" "deployer" {
  for_each = var.deployers

  project  = var.project_id
  location = var.region
  name     = google_cloud_run_v2_service.this.name
  role     = "roles/run.developer"
  member   = "serviceAccount:${each.value}"
}
