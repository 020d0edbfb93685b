"""Headers of the PROXY protocol, as proxies send them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""The beginning of version 2."""


def v1(source: str) -> bytes:
    """A header of version 1 for a TCP connection from this address."""
    is_ipv4 = ip_address(source).version == 4
    family, destination = ("TCP4", "192.0.2.1") if is_ipv4 else ("TCP6", "2001:db8::1")
    return f"PROXY {family} {source} {destination} 4711 443\r\n".encode()


def v2(source: str) -> bytes:
    """A header of version 2 for a TCP connection from this address."""
    address = ip_address(source)
    body = address.packed * 2 + struct.pack("!HH", 4711, 443)
    return v2_of(0x21, 0x11 if address.version == 4 else 0x21, body)


def v2_of(command: int, family: int, body: bytes) -> bytes:
    """Any header of version 2, with the length of its body."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body
