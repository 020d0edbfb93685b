"""Addresses of clients, as they are logged, listed and counted."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_address
from typing import Final

_IPV6_PREFIX_BITS: Final = 64
"""The prefix that counts as one address. A customer of an IPv6 network usually has a /64, so one
client may connect from 2^64 addresses."""


def normal_address(text: str) -> str:
    """Return an IP address in its usual form, without a zone; an IPv4-mapped one as IPv4.

    Raises ValueError if the text is no address.
    """
    address = ip_address(text.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def counted_address(address: str) -> str:
    """Return the address by which limits are counted: for IPv6 the /64 network."""
    if ":" not in address:
        return address
    parsed = ip_address(address)
    return str(IPv6Network((int(parsed), _IPV6_PREFIX_BITS), strict=False))
