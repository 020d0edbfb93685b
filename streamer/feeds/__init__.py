"""Recorded and simulated market data, ready to be published.

A feed is an iterator of messages, each with the moment when it is due; only `playback` waits.
"""
