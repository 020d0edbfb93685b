"""Recorded and simulated market data, ready to be published.

A feed is an iterator of messages, each with the time when it is due.
"""
