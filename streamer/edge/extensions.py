"""Negotiation of permessage-deflate: RFC 6455, section 9.1, and RFC 7692, sections 5 and 7.1.

A client offers extensions in order of preference, one of them perhaps several times with different
parameters. The first offer of permessage-deflate that the server can meet is accepted; one with a
parameter that is unknown, doubled or out of range is declined, as RFC 7692 requires.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import attrs

from streamer.wire.deflate import LARGEST_WINDOW_BITS, SMALLEST_WINDOW_BITS, Window

NAME: Final = "permessage-deflate"

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SPACE: Final = r"[ \t]*"
_PARAMETER: Final = re.compile(
    rf'{_SPACE};{_SPACE}({_TOKEN}){_SPACE}(?:={_SPACE}(?:({_TOKEN})|"((?:[^"\\]|\\.)*)"))?'
)
_EXTENSION: Final = re.compile(rf"{_SPACE}({_TOKEN})")
_END: Final = re.compile(rf"{_SPACE}(?:,[ \t,]*|$)")
_BITS: Final = {str(bits): bits for bits in range(8, 16)}
"""The window sizes that RFC 7692 knows, as they are written."""


_MAX_OFFERED: Final = 64
"""Extensions and parameters in a header: several times as many as any client has. 16 KB of them
would take 40 ms, and megabytes of memory for as long as they are kept."""

_KEPT_HEADERS: Final = 64
"""Headers whose offers are kept: two megabytes at most, since a request has 16 KB."""


@attrs.frozen
class Offer:
    """An extension that a client offers, with its parameters in order."""

    name: str
    parameters: tuple[tuple[str, str | None], ...] = ()
    """Names and values; None for a parameter without one."""


@attrs.frozen
class Agreement:
    """The permessage-deflate that both sides use."""

    response: bytes
    """The value of the response's header Sec-WebSocket-Extensions."""
    window: Window
    """How the server may compress; clients compress each message by itself."""


@lru_cache(maxsize=_KEPT_HEADERS)
def parse_offers(header: str) -> tuple[Offer, ...]:
    """Parse the values of Sec-WebSocket-Extensions, joined by commas.

    All clients of one kind send the same, so the last ones are kept. Raises ValueError for a header
    that RFC 6455 does not allow, or that has too many.
    """
    offers = []
    offered = 0
    at = len(header) - len(header.lstrip(" \t,"))
    while at < len(header):
        found = _EXTENSION.match(header, at)
        if found is None:
            raise ValueError(f"no extension at character {at}")
        name, at = found[1], found.end()
        parameters = []
        while (found := _PARAMETER.match(header, at)) is not None:
            parameters.append((found[1], _value(found)))
            at = found.end()
            if offered + len(parameters) > _MAX_OFFERED:
                break
        offered += 1 + len(parameters)
        if offered > _MAX_OFFERED:
            raise ValueError(f"more than {_MAX_OFFERED} extensions and parameters")
        found = _END.match(header, at)
        if found is None:
            raise ValueError(f"no end of an extension at character {at}")
        at = found.end()
        offers.append(Offer(name, tuple(parameters)))
    return tuple(offers)


def _value(parameter: re.Match[str]) -> str | None:
    if parameter[3] is None:
        return parameter[2]
    value = re.sub(r"\\(.)", r"\1", parameter[3])
    if re.fullmatch(_TOKEN, value) is None:
        raise ValueError(f"the value of {parameter[1]} is no token")
    return value


def agree(offers: Sequence[Offer], *, max_window_bits: int, takeover: bool) -> Agreement | None:
    """Accept the first offer of permessage-deflate that can be met; None if there is none.

    `max_window_bits` is the largest window that the server uses, and `takeover` whether its
    messages may refer to earlier ones.
    """
    for offer in offers:
        if offer.name == NAME:
            agreement = _accept(offer, max_window_bits, takeover=takeover)
            if agreement is not None:
                return agreement
    return None


def _accept(offer: Offer, max_window_bits: int, *, takeover: bool) -> Agreement | None:
    parameters = dict(offer.parameters)
    if len(parameters) < len(offer.parameters):
        return None  # one of them is doubled
    bits = LARGEST_WINDOW_BITS
    for name, value in parameters.items():
        match name, value:
            case ("server_no_context_takeover", None):
                takeover = False
            case ("client_no_context_takeover" | "client_max_window_bits", None):
                pass
            case ("client_max_window_bits", str()) if value in _BITS:
                pass  # any window of the client's can be inflated
            case ("server_max_window_bits", str()) if value in _BITS:
                bits = _BITS[value]
            case _:
                return None
    if bits < SMALLEST_WINDOW_BITS:
        return None
    bits = min(bits, max_window_bits)
    response = [NAME, "client_no_context_takeover"]
    if not takeover:
        response.append("server_no_context_takeover")
    if bits < LARGEST_WINDOW_BITS or "server_max_window_bits" in parameters:
        response.append(f"server_max_window_bits={bits}")
    return Agreement("; ".join(response).encode(), Window(bits, takeover=takeover))
