"""Publications from Redis, in front of every WebSocket client that asked for them."""

__version__ = "0.1.0"
