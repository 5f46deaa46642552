"""Juju's side of a machine: the unit agent that runs inside it, and the operator's hand on it from outside."""
