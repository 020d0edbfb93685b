"""The client's address behind proxies: X-Forwarded-For, and Forwarded (RFC 7239).

Anyone can send these headers, so they are believed only of trusted proxies. Each proxy adds the
address of its own peer on the right. So they are read from right to left, as long as the address is
that of a trusted proxy; the first other one is the client. What is further left may be made up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Final, Self

import attrs

from streamer.edge.addresses import normal_address

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = rf'{_TOKEN}=(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'
_ELEMENT: Final = re.compile(rf"[ \t]*{_PAIR}(?:[ \t]*;[ \t]*{_PAIR})*[ \t]*")
_FOR: Final = re.compile(
    rf'(?:^|;)[ \t]*for=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")(?=[ \t]*(?:;|$))', re.IGNORECASE
)

_MAX_ELEMENT_CHARACTERS: Final = 1024
"""Characters of one element of Forwarded. The end of a longer one is not searched for: that takes
time in proportion to the square of the length."""

_MAX_HOPS: Final = 64
"""Elements that are looked at: more than there are proxies on any way here, less than a
millisecond."""

_NODE: Final = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.%\w-]+)\]|(?P<ipv4>[0-9.]+))"
    r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
)
"""An address and, if any, a port or its obfuscated form (RFC 7239, section 6)."""


@attrs.frozen
class Forwarding:
    """The headers of a request that name its client; anybody may have written them."""

    forwarded_for: str | None = None
    """X-Forwarded-For, all its lines joined by commas; None if there is none."""
    forwarded: str | None = None
    """Forwarded (RFC 7239), likewise."""

    @classmethod
    def from_headers(cls, headers: Mapping[bytes, bytes]) -> Self:
        """Take them from the headers of a request, by names in lower case."""
        forwarded_for, forwarded = headers.get(b"x-forwarded-for"), headers.get(b"forwarded")
        return cls(
            None if forwarded_for is None else forwarded_for.decode("latin-1"),
            None if forwarded is None else forwarded.decode("latin-1"),
        )


class TrustedProxies:
    """The peers that are trusted to name the addresses of their clients."""

    def __init__(self, networks: Iterable[str]) -> None:
        """`networks` are addresses and CIDR networks. Raises ValueError for anything else."""
        self._networks = tuple(map(ip_network, networks))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        """Whether a peer with this IP address is one of them."""
        if not self._networks:
            return False
        parsed = ip_address(address)
        return any(parsed in network for network in self._networks)

    def client_address(self, peer: str, forwarding: Forwarding) -> str:
        """Return the address of the client behind a peer; the peer's own if none is known.

        If there are both headers, X-Forwarded-For counts: the usual proxies set it, and pass a
        client's Forwarded on.
        If all addresses are those of trusted proxies, the leftmost is the client. A value that
        is no address (`unknown`, an obfuscated or a malformed one) hides the client.
        """
        if peer not in self:
            return peer
        hops = (
            _reversed_elements(forwarding.forwarded or "")
            if forwarding.forwarded_for is None
            else reversed(forwarding.forwarded_for.split(","))
        )
        client = peer
        for hop in islice(hops, _MAX_HOPS):
            if not hop.strip():
                continue  # RFC 9110, 5.6.1: an empty element is ignored
            address = _address(hop.strip())
            if address is None:
                return peer
            client = address
            if client not in self:
                break
        return client


def _reversed_elements(header: str) -> Iterator[str]:
    """Yield the `for` of each element of Forwarded, from right to left; `unknown` if it has none.

    A comma may be inside a quoted string, whose beginning is found only from the left; but on the
    left may be an unfinished quoted string that a client has sent. So an element is the shortest
    well-formed text between a comma and the end: a proxy's own is always well-formed.
    """
    end = len(header)
    while end >= 0:
        comma = end
        while True:
            comma = header.rfind(",", 0, comma)
            element = header[comma + 1 : end]
            if not element.strip() or _ELEMENT.fullmatch(element):
                break
            if comma < 0 or end - comma > _MAX_ELEMENT_CHARACTERS:
                yield "unknown"
                return
        yield _for_of(element) if element.strip() else ""
        end = comma


def _for_of(element: str) -> str:
    found = _FOR.findall(element)
    if len(found) != 1:
        return "unknown"
    token, quoted = found[0]
    return token or re.sub(r"\\(.)", r"\1", quoted)


def _address(node: str) -> str | None:
    """Return the address of a node, which may have a port; None if it has no address."""
    match = _NODE.fullmatch(node)
    try:
        return normal_address(node if match is None else match["bracketed"] or match["ipv4"])
    except ValueError:
        return None
