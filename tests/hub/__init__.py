"""Tests of `streamer.hub`."""
