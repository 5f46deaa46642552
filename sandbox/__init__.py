"""Stand-ins for what surrounds the charm: an LXD set-up, a Juju machine, GitHub and its runner agent."""
