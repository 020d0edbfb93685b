"""The bytes that all clients of a server are sent, and that come from them."""

from __future__ import annotations


class Traffic:
    """Counts the bytes of all clients: a write adds to one number, however many it serves.

    Bytes are counted before TLS encrypts and after it decrypts them, with the frames of WebSocket.
    """

    __slots__ = ("received_bytes", "sent_bytes")

    def __init__(self) -> None:
        self.sent_bytes = 0
        """Taken by sockets, from the answer to the handshake on."""
        self.received_bytes = 0
        """Received after the handshakes of WebSocket clients."""
