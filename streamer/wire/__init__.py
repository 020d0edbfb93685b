"""Encoding of messages into bytes for one receiver. No I/O."""
