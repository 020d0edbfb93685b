"""The content of test messages: much of it is in other messages too, at other places.

A compressor then refers to earlier messages nearly everywhere, so a client that lacks one of them,
or has one more, cannot inflate what follows to the right bytes.
"""

from __future__ import annotations

import hashlib
from typing import Final

_COMMON: Final = hashlib.shake_128(b"common").hexdigest(2000)


def pad(value: int, size: int) -> str:
    """`size` characters that depend on `value`: half of them are its own, half common to all."""
    own = hashlib.shake_128(b"%d %d" % (value, size)).hexdigest(size // 4 + 1)
    start = 37 * value % len(_COMMON)
    common = (_COMMON * (size // len(_COMMON) + 2))[start : start + size - size // 2]
    return own[: size // 2] + common
