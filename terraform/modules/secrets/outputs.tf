output "versions" {
  description = "For each secret its name and the version to read, once its reader may read it"
  value = merge({ for name, given in var.given : name => { secret = given.secret, version = given.version } }, {
    for name, version in google_secret_manager_secret_version.this :
    name => {
      secret  = google_secret_manager_secret.this[name].secret_id
      version = version.version
    }
  })

  depends_on = [google_secret_manager_secret_iam_member.reader]
}
