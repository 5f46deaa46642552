"""What the machine needs so that runners can live on it (spec 4). Every step can be repeated."""
