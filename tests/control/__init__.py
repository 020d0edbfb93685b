"""Tests of streamer.control."""
