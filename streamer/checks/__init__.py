"""Checks of what a server will need, before it starts: Redis, files, URLs and the machine."""
