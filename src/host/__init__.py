"""What the machine needs so that runners can be created on it. Every step can be repeated."""
