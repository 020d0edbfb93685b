"""Origins of web pages, normalized and matched."""

from __future__ import annotations

import pytest

from streamer.origins import OriginRules, normalize_origin


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Example.com", "https://example.com"),
        ("https://example.com:443", "https://example.com"),
        ("http://example.com:80/", "http://example.com"),
        ("https://example.com:8443", "https://example.com:8443"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://*.Example.com", "https://*.example.com"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(text: str, origin: str) -> None:
    """Case, default ports and international names are those of the header Origin."""
    assert normalize_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "example.com",
        "https://",
        "https://a/b",
        "https://u@a",
        "https://a*.b",
        "https://*.",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    """A setting with one is refused at the start, rather than never match."""
    with pytest.raises(ValueError, match=r"origin|first labels"):
        normalize_origin(text)


def test_a_pattern_stands_for_the_hosts_below_one() -> None:
    """Neither the host itself nor one that only ends alike is allowed; no Origin is."""
    rules = OriginRules([normalize_origin("https://*.example.com"), "http://one.example:81"])
    for origin in ("https://a.example.com", "https://a.b.EXAMPLE.com:443", "http://one.example:81"):
        assert rules.allow(origin)
    for origin in (
        "https://example.com",
        "https://evilexample.com",
        "http://a.example.com",
        "https://a.example.com:8443",
        "http://one.example",
        "null",
    ):
        assert not rules.allow(origin)
    assert rules.allow(None)
    assert OriginRules([]).allow("https://any.example")
