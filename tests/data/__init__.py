"""Recorded market data, and the script that cuts it."""
