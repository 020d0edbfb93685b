"""WebSocket frame bytes from the server: RFC 6455, section 5.

A server's frames are not masked, so the bytes are the same for every receiver: a message is framed
once and the one `bytes` object is written to all of them.
"""

from __future__ import annotations

import struct
from typing import Final

TEXT: Final = 0x81
"""First byte of a whole text message: FIN and opcode 1."""
COMPRESSED_TEXT: Final = 0xC1
"""The same with RSV1: the payload is compressed (RFC 7692, 6)."""
CLOSE: Final = 0x88
PING: Final = 0x89
PONG: Final = 0x8A

_MAX_CONTROL_PAYLOAD_BYTES: Final = 125
_MEDIUM = struct.Struct("!BBH").pack
_LARGE = struct.Struct("!BBQ").pack


def _header(first_byte: int, length: int) -> bytes:
    if length < 126:
        return bytes((first_byte, length))
    if length < 65536:
        return _MEDIUM(first_byte, 126, length)
    return _LARGE(first_byte, 127, length)


def text_frame(payload: bytes) -> bytes:
    """One text message; `payload` is UTF-8."""
    return _header(TEXT, len(payload)) + payload


def compressed_text_frame(payload: bytes) -> bytes:
    """One text message; `payload` is DEFLATE of UTF-8 (RFC 7692, 7.2.1)."""
    return _header(COMPRESSED_TEXT, len(payload)) + payload


def ping_frame(payload: bytes = b"") -> bytes:
    """A ping; the peer's pong brings the same payload back."""
    return _header(PING, len(payload)) + payload


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping."""
    return _header(PONG, len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close; a reason that does not fit is cut at a whole character."""
    text = reason.encode()[: _MAX_CONTROL_PAYLOAD_BYTES - 2].decode(errors="ignore").encode()
    payload = struct.pack("!H", code) + text
    return _header(CLOSE, len(payload)) + payload
