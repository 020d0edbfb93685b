"""Tests of the whole server with a real Redis."""
