"""Everything GitHub."""
