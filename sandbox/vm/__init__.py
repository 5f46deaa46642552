"""Real virtual machines in the sandbox, also where KVM and vhost-vsock do not work: see CONTRIBUTING.md."""
