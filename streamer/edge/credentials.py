"""The token in a client's HTTP request, be it the handshake of a WebSocket or a plain request.

A token is a secret: nothing here logs one, and none is in the text of an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final

SUBPROTOCOL: Final = "streamer.v1"
"""The subprotocol that the server selects: a browser closes a connection for which it offered
subprotocols, and none of them was selected."""

_TOKEN_SUBPROTOCOL: Final = "bearer."
_TOKEN_PARAMETER: Final = "token"
_SCHEME: Final = re.compile(rb"bearer +", re.IGNORECASE)

_JWT_START: Final = "eyJ"
_DOTTED: Final = re.compile(r"(?<![\w-])[\w-]++\.[\w.-]++", re.ASCII)
"""The longest text that may have a JWT in it. It is looked at once: a search for the token itself
would begin anew at each `eyJ`, and 16 KB of these took 200 ms."""


def find_token(
    headers: Mapping[bytes, bytes], query: Mapping[str, str], *, cookie: str | None
) -> str | None:
    """Return the token of a request, or None if it has none; it is not verified.

    It is taken from the first of these places that has one: the header Authorization (Bearer), a
    subprotocol `bearer.TOKEN`, the cookie of this name (None: from no cookie), and the parameter
    `token` of the query. `headers` have names in lower case; the values of a repeated header are
    joined by commas.
    """
    return (
        _bearer(headers.get(b"authorization", b""))
        or _from_subprotocols(subprotocols(headers))
        or (None if cookie is None else _from_cookies(headers.get(b"cookie", b""), cookie))
        or query.get(_TOKEN_PARAMETER)
        or None
    )


def without_token(query: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a query, except its token."""
    return {name: value for name, value in query.items() if name != _TOKEN_PARAMETER}


def subprotocols(headers: Mapping[bytes, bytes]) -> list[str]:
    """Return the subprotocols that a client offers, in order."""
    offered = headers.get(b"sec-websocket-protocol")
    if offered is None:
        return []
    return [name.strip() for name in offered.decode("latin-1").split(",")]


def hide_tokens(text: str) -> str:
    """Replace each JWT in a text that a client sent, so that the text can be logged and listed."""
    return _DOTTED.sub(_without_jwt, text) if _JWT_START in text else text


def _without_jwt(dotted: re.Match[str]) -> str:
    """Replace a signed or encrypted JWT in a text of base64url and dots.

    Its header is a JSON object in base64url, so it begins with `eyJ`.
    """
    parts = dotted[0].split(".")
    at = 0
    for part, following in pairwise(parts):
        start = part.find(_JWT_START)
        if 0 <= start < len(part) - len(_JWT_START) and following:
            return f"{dotted[0][: at + start]}(token)"
        at += len(part) + 1
    return dotted[0]


def _bearer(authorization: bytes) -> str | None:
    if not authorization:
        return None
    scheme = _SCHEME.match(authorization)
    return None if scheme is None else authorization[scheme.end() :].decode("latin-1").strip()


def _from_subprotocols(names: Iterable[str]) -> str | None:
    tokens = (
        name.removeprefix(_TOKEN_SUBPROTOCOL)
        for name in names
        if name.startswith(_TOKEN_SUBPROTOCOL)
    )
    return next(tokens, None)


def _from_cookies(header: bytes, name: str) -> str | None:
    return next((value for key, value in _cookies(header) if key == name), None)


def _cookies(header: bytes) -> Iterator[tuple[str, str]]:
    """Yield names and values (RFC 6265, 4.2.1); a value may be quoted."""
    for pair in header.decode("latin-1").split(";"):
        name, _, value = pair.partition("=")
        yield name.strip(), value.strip().strip('"')
