"""The operator's requests, carried out by every server process on one Redis."""
