resource "juju_application" "github_runner" {
  name       = var.app_name
  model_uuid = var.model_uuid

  charm {
    name     = "github-runner"
    channel  = var.channel
    revision = var.revision
  }

  config             = var.config
  constraints        = var.constraints
  storage_directives = var.storage_directives

  # The provider takes either of them.
  machines = length(var.machines) > 0 ? var.machines : null
  units    = length(var.machines) > 0 ? null : var.units
}
