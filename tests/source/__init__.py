"""Tests of `streamer.source`."""
