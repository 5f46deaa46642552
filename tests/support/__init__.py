"""What several folders of tests use. It imports nothing of them."""
