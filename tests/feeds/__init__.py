"""Feeds, checked against the recordings themselves."""
