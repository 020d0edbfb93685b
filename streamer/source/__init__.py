"""Where publications come from."""
