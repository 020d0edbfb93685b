"""Tests of `streamer.admin`."""
