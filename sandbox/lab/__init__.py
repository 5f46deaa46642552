"""The machine that Juju would give: a real LXD and a container with the distribution's packages."""
