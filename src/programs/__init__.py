"""What systemd units run outside of hooks."""
