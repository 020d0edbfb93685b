"""Tests of `streamer check`: each part on its own, and the command."""
