"""Recorded and simulated market data, ready to be published. No trio: a feed is an iterator."""
