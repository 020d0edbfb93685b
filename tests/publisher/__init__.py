"""Tests of `streamer.publisher`."""
