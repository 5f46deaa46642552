"""Everything LXD."""
