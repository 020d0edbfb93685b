"""Tests of `streamer.broker`."""
