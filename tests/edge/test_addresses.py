"""Addresses of clients, written in one way each."""

from __future__ import annotations

import pytest

from streamer.edge.addresses import counted_address, normal_address


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_each_address_has_one_form(text: str, normal: str) -> None:
    """A client cannot get a second share by another spelling of its address."""
    assert normal_address(text) == normal


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2", "192.0.2.01", "1.2.3.4:80", "[::1]"])
def test_other_text_is_no_address(text: str) -> None:
    """It raises ValueError."""
    with pytest.raises(ValueError, match="not appear to be"):
        normal_address(text)


@pytest.mark.parametrize(
    ("address", "counted"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("::1", "::/64")],
)
def test_ipv6_is_counted_by_network(address: str, counted: str) -> None:
    """A customer has a /64 network of its own, and so any number of addresses."""
    assert counted_address(address) == counted
