"""Inflate one message of a client, to no more than its limit: RFC 7692, section 7.2.2.

Clients agree to `client_no_context_takeover`, so each message is inflated by itself and nothing is
kept from one to the next.
"""

from __future__ import annotations

import zlib
from typing import Final

_FLUSH_END: Final = b"\x00\x00\xff\xff"
"""The end of a flush, which the sender has cut off."""
_MAX_STREAMS: Final = 16
"""DEFLATE streams in one message. RFC 7692, 7.2.3.4 shows a message of one that ends and an empty
block behind it; thousands of empty ones would take 100 ms."""


class InflateError(ValueError):
    """The bytes are not DEFLATE."""


class TooLargeError(Exception):
    """The message is larger than allowed."""


def largest_compressed(max_message_bytes: int) -> int:
    """Return the most bytes that a message of `max_message_bytes` takes compressed.

    DEFLATE may add some bytes to each block of what does not shrink.
    """
    return max_message_bytes + max_message_bytes // 16 + 64


def inflate(data: bytes | bytearray, max_bytes: int) -> bytes:
    """Return a message of at most `max_bytes`.

    Raises TooLargeError before it inflates more than one byte too many, and InflateError. Data that
    ends in the middle of a block is no error that DEFLATE could show: the message is cut then.
    """
    pending = bytes(data) + _FLUSH_END
    message = b""
    try:
        for _ in range(_MAX_STREAMS):
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            message += inflater.decompress(pending, max_bytes + 1 - len(message))
            if len(message) > max_bytes:
                raise TooLargeError
            pending = inflater.unused_data
            if not pending:
                return message
    except zlib.error as error:
        raise InflateError(str(error)) from None
    raise InflateError(f"a message of more than {_MAX_STREAMS} DEFLATE streams")
