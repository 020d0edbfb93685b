"""Tests of `streamer.protocol`."""
