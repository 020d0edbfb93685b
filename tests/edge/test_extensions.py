"""Negotiation of permessage-deflate: RFC 7692 parameter by parameter, and offers of any kind."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate

from streamer.edge.extensions import NAME, Agreement, Offer, agree, parse_offers
from streamer.wire.deflate import Window

TOKENS = st.text("abz019-_.!#$%&'*+^`|~", min_size=1, max_size=8)
BITS = st.one_of(st.integers(-1, 17).map(str), st.sampled_from(["", "08", "9.0", "x", "15"]))
NAMES = st.sampled_from(
    [
        "server_no_context_takeover",
        "client_no_context_takeover",
        "server_max_window_bits",
        "client_max_window_bits",
        "unknown",
    ]
)
OFFERS = st.builds(
    Offer,
    st.one_of(st.just(NAME), TOKENS),
    st.lists(
        st.tuples(st.one_of(NAMES, TOKENS), st.one_of(st.none(), BITS.filter(bool), TOKENS)),
        max_size=5,
    ).map(tuple),
)


def agreed(header: str, *, max_window_bits: int = 15, takeover: bool = True) -> str | None:
    """The response to a header."""
    offers = parse_offers(header)
    agreement = agree(offers, max_window_bits=max_window_bits, takeover=takeover)
    return None if agreement is None else agreement.response.decode()


PLAIN = "permessage-deflate; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "response"),
    [
        ("permessage-deflate", PLAIN),  # Firefox
        ("permessage-deflate; client_max_window_bits", PLAIN),  # Chromium, Node
        ("permessage-deflate; client_max_window_bits=8", PLAIN),
        ('permessage-deflate; client_max_window_bits="12"', PLAIN),
        ("permessage-deflate; client_no_context_takeover", PLAIN),
        (
            "permessage-deflate; server_no_context_takeover",
            PLAIN + "; server_no_context_takeover",
        ),
        ("permessage-deflate; server_max_window_bits=9", PLAIN + "; server_max_window_bits=9"),
        ("permessage-deflate;server_max_window_bits=15", PLAIN + "; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=8", None),  # zlib cannot
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=015", None),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=010", None),
        ("permessage-deflate; client_no_context_takeover=1", None),
        ("permessage-deflate; server_no_context_takeover=true", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; unknown, permessage-deflate; client_max_window_bits", PLAIN),
        ("permessage-bzip2, permessage-deflate", PLAIN),
        (
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            PLAIN + "; server_max_window_bits=10",
        ),
        ("", None),
        (" , ,", None),
    ],
)
def test_the_first_offer_that_can_be_met_is_accepted(offer: str, response: str | None) -> None:
    """RFC 7692, 5.1 and 7.1."""
    assert agreed(offer) == response


def test_the_servers_own_window_is_named_where_it_is_smaller() -> None:
    """Whether or not the client asks for one."""
    assert agreed("permessage-deflate", max_window_bits=12) == PLAIN + "; server_max_window_bits=12"
    offer = "permessage-deflate; server_max_window_bits=14"
    assert agreed(offer, max_window_bits=12) == PLAIN + "; server_max_window_bits=12"
    offer = "permessage-deflate; server_max_window_bits=10"
    assert agreed(offer, max_window_bits=12) == PLAIN + "; server_max_window_bits=10"


def test_a_server_without_windows_says_so() -> None:
    """Then its clients need none to inflate with."""
    response = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
    assert agreed("permessage-deflate", takeover=False) == response


@pytest.mark.parametrize(
    "header",
    [
        "permessage-deflate;",
        "permessage-deflate; ;",
        "; x",
        "permessage-deflate; a=",
        "permessage-deflate; a=b c",
        'permessage-deflate; a="b c"',
        'permessage-deflate; a="b',
        'permessage-deflate; a=""',
        "permessage deflate",
        "permessage-deflate=1",
        "(comment)",
        "é",
    ],
)
def test_a_header_that_no_rfc_allows_is_an_error(header: str) -> None:
    """The grammar of RFC 6455, 9.1."""
    with pytest.raises(ValueError, match=r"extension|token"):
        parse_offers(header)


@pytest.mark.parametrize("header", [",".join(["a"] * 65), "a" + ";b" * 65, "a;b;c," * 22])
def test_a_header_with_too_many_offers_is_an_error(header: str) -> None:
    """Each takes time and memory, and 16 KB hold thousands."""
    with pytest.raises(ValueError, match="more than 64 extensions"):
        parse_offers(header)
    assert len(parse_offers(",".join(["a"] * 64))) == 64


@given(st.lists(OFFERS, max_size=4), st.booleans())
def test_offers_are_parsed_as_they_were_meant(offers: list[Offer], quoted: bool) -> None:
    """With values as tokens or as quoted strings, and spaces anywhere."""

    def written(value: str | None) -> str:
        if value is None:
            return ""
        return f' = "\\{value}"' if quoted else f"={value}"

    header = " ,, ".join(
        offer.name + "".join(f" ;\t{name}{written(value)}" for name, value in offer.parameters)
        for offer in offers
    )
    assert parse_offers(header) == tuple(offers)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(header: str) -> None:
    """No other error, and no endless loop."""
    try:
        offers = parse_offers(header)
    except ValueError:
        return
    agree(offers, max_window_bits=15, takeover=True)


@given(st.lists(OFFERS, max_size=4), st.integers(9, 15), st.booleans())
def test_a_response_is_one_that_the_offer_allows(
    offers: list[Offer], max_window_bits: int, takeover: bool
) -> None:
    """Checked against RFC 7692, 7.1, and by a client that reads it."""
    agreement = agree(offers, max_window_bits=max_window_bits, takeover=takeover)
    acceptable = [offer for offer in offers if _is_valid(offer)]
    if agreement is None:
        assert not acceptable
        return
    asked = dict(acceptable[0].parameters)
    _check_response(agreement, asked)
    assert agreement.window.bits <= max_window_bits
    assert agreement.window.takeover == (takeover and "server_no_context_takeover" not in asked)


def _is_valid(offer: Offer) -> bool:
    names = [name for name, _ in offer.parameters]
    return (
        offer.name == NAME
        and len(set(names)) == len(names)
        and all(
            (value is None and name.endswith("_no_context_takeover"))
            or (value is None and name == "client_max_window_bits")
            or (re.fullmatch("[89]|1[0-5]", value or "") and name == "client_max_window_bits")
            or (re.fullmatch("9|1[0-5]", value or "") and name == "server_max_window_bits")
            for name, value in offer.parameters
        )
        and set(names) <= _KNOWN
    )


_KNOWN = {
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits",
    "client_max_window_bits",
}


def _check_response(agreement: Agreement, asked: dict[str, str | None]) -> None:
    response = agreement.response.decode()
    (answer,) = parse_offers(response)
    answered = dict(answer.parameters)
    assert len(answered) == len(answer.parameters)
    assert answered.keys() <= _KNOWN
    assert "client_no_context_takeover" in answered
    assert "client_max_window_bits" not in answered, "any window of the client's is good"
    if "server_no_context_takeover" in asked:
        assert "server_no_context_takeover" in answered
    if (most := asked.get("server_max_window_bits")) is not None:
        assert int(answered["server_max_window_bits"] or 0) <= int(most)
    client = PerMessageDeflate()
    client.finalize(response)
    assert client.server_max_window_bits == agreement.window.bits
    assert client.server_no_context_takeover != agreement.window.takeover


def test_windows_are_compared_by_value() -> None:
    """Clients that agreed to the same share a format."""
    offers = parse_offers("permessage-deflate")
    first = agree(offers, max_window_bits=15, takeover=True)
    second = agree(offers, max_window_bits=15, takeover=True)
    assert first is not None
    assert second is not None
    assert first.window == second.window == Window(15, takeover=True)
