output "versions" {
  description = "For each secret its name and the number of its current version, once its readers may read it"
  value = merge(var.given, {
    for name, version in google_secret_manager_secret_version.this :
    name => {
      secret  = google_secret_manager_secret.this[name].secret_id
      version = version.version
    }
  })

  depends_on = [google_secret_manager_secret_iam_member.reader]
}
