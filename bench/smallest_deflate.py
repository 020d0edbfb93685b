"""The smallest DEFLATE of a message that may refer to earlier ones, whatever makes it.

Messages of a few changed numbers are compressed with the fixed codes of DEFLATE (RFC 1951, 3.2.6),
since codes of their own would take more bytes than such a message has. With fixed codes each
literal and each reference has a known number of bits, so the shortest of all ways to write a
message can be found. That takes thousands of times as long as zlib does.
"""

from __future__ import annotations

from typing import Final

_BLOCK_HEADER_BITS: Final = 3
_END_OF_BLOCK_BITS: Final = 7
_FIXED_BITS: Final = _BLOCK_HEADER_BITS + _END_OF_BLOCK_BITS + _BLOCK_HEADER_BITS
"""Besides the data: head and end of its block, and the head of the empty block behind it, whose
other bytes are not sent (RFC 7692, 7.2.1)."""
_STORED_BYTES: Final = 6
"""Besides the data of a stored block: its head and length, and the head of the empty one."""

_SHORTEST: Final = 3
_LONGEST: Final = 258
"""Bytes that a reference may stand for."""


def _length_bits() -> list[int]:
    """Return the bits of a reference's length, by length: code and extra bits."""
    bits = [0] * _SHORTEST
    for code in range(257, 285):
        extra = max(code - 261, 0) // 4
        bits += [(7 if code < 280 else 8) + extra] * (1 << extra)
    return [*bits[:_LONGEST], 8]  # the longest has a code of its own


_LENGTH_BITS: Final = _length_bits()
_DISTANCE_CODE_BITS: Final = 5


def _literal_bits(byte: int) -> int:
    return 8 if byte < 144 else 9


def _distance_bits(distance: int) -> int:
    return _DISTANCE_CODE_BITS + max((distance - 1).bit_length() - 2, 0)


def smallest_deflate(message: bytes, before: bytes) -> int:
    """Return the bytes of the shortest payload of one block, with the fixed codes or stored.

    `before` is what references may go back to: the last bytes of the earlier messages.
    """
    start, end = len(before), len(before) + len(message)
    text = before + message
    bits = [0] + [_LENGTH_BITS[-1] * len(message) * 2] * len(message)
    for at in range(start, end):
        here = bits[at - start]
        bits[at - start + 1] = min(bits[at - start + 1], here + _literal_bits(text[at]))
        # For each length the nearest occurrence is best, as larger distances have more bits.
        length, nearest = _SHORTEST, at
        while at + length <= end and length <= _LONGEST:
            nearest = text.rfind(text[at : at + length], 0, nearest + length - 1)
            if nearest < 0:
                break
            distance_bits = _distance_bits(at - nearest)
            while True:
                to = at - start + length
                bits[to] = min(bits[to], here + _LENGTH_BITS[length] + distance_bits)
                length += 1
                if (
                    at + length > end
                    or length > _LONGEST
                    or text[nearest + length - 1] != text[at + length - 1]
                ):
                    break
    return min((_FIXED_BITS + bits[-1] + 7) // 8, len(message) + _STORED_BYTES)
