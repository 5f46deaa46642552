output "app_name" {
  description = "Name of the application."
  value       = juju_application.github_runner.name
}

output "provides" {
  description = "Endpoints that the charm provides."
  value = {
    cos_agent = "cos-agent"
  }
}

output "requires" {
  description = "Endpoints that the charm requires."
  value = {
    debug_ssh = "debug-ssh"
  }
}
