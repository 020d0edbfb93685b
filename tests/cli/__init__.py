"""Tests of the command line, as users type it."""
