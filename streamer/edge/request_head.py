"""Read the head of an ordinary request without h11, which takes ten times as long.

Only what is beyond doubt is read here: a GET of HTTP/1.1 with one Host, without a body, in
printable ASCII, that has arrived whole. h11 reads all others, and each request that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

_END: Final = b"\r\n\r\n"
_LINE: Final = re.compile(rb"GET (/[!-~]*) HTTP/1\.1")
_TEXT: Final = re.compile(rb"[\t\r\n -~]*")
"""Characters of a head, line ends included."""
_SPECIAL: Final = frozenset({b"content-length", b"transfer-encoding", b"expect"})
"""Headers that say that more follows than the head."""


@attrs.frozen
class RequestHead:
    """The head of a GET request."""

    target: bytes
    headers: dict[bytes, bytes]
    """By name in lower case; the values of a repeated header are joined by commas."""
    trailing: bytes
    """The bytes after the head."""


def read_head(data: bytes) -> RequestHead | None:
    """Read the head of a request from the first bytes of a connection; None: that is for h11."""
    head, end, trailing = data.partition(_END)
    is_plain = head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n")
    first, *lines = head.split(b"\r\n")
    line = _LINE.fullmatch(first)
    if not (end and is_plain and _TEXT.fullmatch(head) and line):
        return None
    headers = _read_headers(lines)
    return None if headers is None else RequestHead(line[1], headers, trailing)


def _read_headers(lines: Iterable[bytes]) -> dict[bytes, bytes] | None:
    headers: dict[bytes, bytes] = {}
    for text in lines:
        name, colon, value = text.partition(b":")
        # h11 allows more names, but nobody uses them.
        if not (colon and name.replace(b"-", b"").isalnum()):
            return None
        name, value = name.lower(), value.strip(b" \t")
        if name in headers:
            if name == b"host":
                return None
            value = b"%b, %b" % (headers[name], value)
        headers[name] = value
    if b"host" not in headers or not _SPECIAL.isdisjoint(headers):
        return None
    return headers
