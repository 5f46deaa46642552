variable "app_name" {
  description = "Name of the application. Runners have it as a label and as the beginning of their names."
  type        = string
  default     = "github-runner"
}

variable "channel" {
  description = "Channel of Charmhub, such as latest/edge; null takes the charm's default."
  type        = string
  default     = null
}

variable "config" {
  description = "Options of the charm. A credential is the URI of a Juju secret, never the token itself: see the README."
  type        = map(string)
  default     = {}

  validation {
    condition     = !contains(keys(var.config), "token")
    error_message = "The option token would be kept in Terraform's state; use app-secret or token-secret with a Juju secret."
  }
}

variable "constraints" {
  description = "Constraints of the machines, such as \"cores=16 mem=64G root-disk=200G\"."
  type        = string
  default     = null
}

variable "machines" {
  description = "Ids of existing machines, one unit for each; empty lets Juju make as many machines as there are units."
  type        = set(string)
  default     = []
}

variable "model_uuid" {
  description = "UUID of the model."
  type        = string
  nullable    = false
}

variable "revision" {
  description = "Revision of the charm; null takes the channel's newest when it is deployed."
  type        = number
  default     = null
}

variable "storage_directives" {
  description = "Storage of the charm, such as { runner = \"150G\" } for the option runner-storage=juju-storage."
  type        = map(string)
  default     = {}
}

variable "units" {
  description = "Number of units, each on a machine of its own; not used where machines are given."
  type        = number
  default     = 1

  validation {
    condition     = var.units >= 0 && floor(var.units) == var.units
    error_message = "units is a whole number, 0 or more."
  }
}
