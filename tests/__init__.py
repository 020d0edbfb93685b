"""The tests: their layout mirrors the package's."""
