"""Tests of workers and their parent, as real processes."""
