"""X-Forwarded-For and Forwarded: from trusted proxies alone, and from right to left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.edge.forwarded import Forwarding, TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.1", "fd00::/8"])
PEER = "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("nonsense, 198.51.100.7", "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7, 192.0.2.1,10.9.9.9", "198.51.100.7"),
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("198.51.100.7:4711", "198.51.100.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:DB8::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711, fd00::1", "2001:db8::7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("fe80::7%eth0", "fe80::7"),
        (" , 198.51.100.7 ,, ", "198.51.100.7"),
        ("unknown", PEER),
        ("198.51.100.7, unknown, 10.2.2.2", PEER),
        ("_hidden", PEER),
        ("", PEER),
        (" , ,", PEER),
        ("198.51.100.7:99999999", PEER),
        ("[2001:db8::7", PEER),
        ("2001:db8::7]:80", PEER),
        ("300.1.1.1", PEER),
        ("198.51.100.7 198.51.100.8", PEER),
        ("\xff\xb2", PEER),
    ],
)
def test_the_client_is_the_first_address_that_is_no_proxy(forwarded_for: str, client: str) -> None:
    """From the right; a value that is no address, where one is needed, leaves the peer's."""
    assert PROXIES.client_address(PEER, Forwarding(forwarded_for, None)) == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("for=198.51.100.7", "198.51.100.7"),
        ("For=6.6.6.6, FOR=198.51.100.7;proto=https", "198.51.100.7"),
        ('for=6.6.6.6,by=10.1.1.1;for="198.51.100.7:4711" , for=10.2.2.2', "198.51.100.7"),
        ('for="[2001:db8::7]:4711"', "2001:db8::7"),
        ('for="[2001:db8::7]:_port";by="a, for=6.6.6.6"', "2001:db8::7"),
        ('for="198.51.100\\.7"', "198.51.100.7"),
        ('for="unfinished, for=198.51.100.7', "198.51.100.7"),
        ('for="[2001:db8::7]", for="[fd00::1', PEER),
        ("for=10.1.1.1, for=10.2.2.2", "10.1.1.1"),
        ("for=unknown", PEER),
        ("for=198.51.100.7, for=_gazonk, for=10.2.2.2", PEER),
        ("proto=https", PEER),
        ("for=198.51.100.7;for=6.6.6.6", PEER),
        ("xfor=198.51.100.7", PEER),
        ('host="for=198.51.100.7"', PEER),
        ("198.51.100.7", PEER),
        ("for=", PEER),
        ('for="' + "," * 5000, PEER),
        ("", PEER),
    ],
)
def test_forwarded_is_read_in_the_same_way(forwarded: str, client: str) -> None:
    """RFC 7239, with quoted strings; those that a client left open hide no proxy's element."""
    assert PROXIES.client_address(PEER, Forwarding(None, forwarded)) == client


@pytest.mark.parametrize("peer", ["198.51.100.1", "2001:db8::1"])
def test_others_are_not_believed(peer: str) -> None:
    """A peer that is no trusted proxy keeps its own address, and so does any without proxies."""
    assert PROXIES.client_address(peer, Forwarding("6.6.6.6", "for=6.6.6.6")) == peer
    assert TrustedProxies([]).client_address(peer, Forwarding("6.6.6.6", "for=6.6.6.6")) == peer
    assert not TrustedProxies([])


def test_of_both_headers_the_usual_one_counts() -> None:
    """Proxies that write X-Forwarded-For pass on the Forwarded that a client has made up."""
    assert PROXIES.client_address(PEER, Forwarding("198.51.100.7", "for=6.6.6.6")) == "198.51.100.7"


def test_a_long_way_is_not_searched_to_its_end() -> None:
    """Beyond 64 proxies the header is made up, and reading it all would hold up the loop."""
    assert (
        PROXIES.client_address(PEER, Forwarding("6.6.6.6" + ", 10.1.1.1" * 64, None)) == "10.1.1.1"
    )


@given(
    st.text(st.sampled_from('0123456789abf.:[]"\\,;=_ forFOR%\xff'), max_size=60),
    st.text(max_size=20),
)
def test_nothing_that_a_client_sends_changes_or_breaks_the_answer(made_up: str, other: str) -> None:
    """Text left of the element that a proxy has added does not count, and none raises."""
    for text in made_up, other:
        PROXIES.client_address(PEER, Forwarding(text, None))
        PROXIES.client_address(PEER, Forwarding(None, text))
        appended = f"{text}, 198.51.100.7"
        assert PROXIES.client_address(PEER, Forwarding(appended, None)) == "198.51.100.7"
        appended = f'{text}, for="[2001:db8::7]:4711";by="10.1.1.1, x"'
        assert PROXIES.client_address(PEER, Forwarding(None, appended)) == "2001:db8::7"
