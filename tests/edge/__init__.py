"""Tests of `streamer.edge`."""
