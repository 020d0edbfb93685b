"""The places of a request that a token is taken from, and their order."""

from __future__ import annotations

import pytest

from streamer.edge.credentials import find_token, hide_tokens, subprotocols, without_token

EVERYWHERE = {
    b"authorization": b"Bearer in-header",
    b"sec-websocket-protocol": b"streamer.v1, bearer.in-subprotocol",
    b"cookie": b"a=1; auth=in-cookie; b=2",
}
QUERY = {"token": "in-query", "session_id": "s1"}


def test_the_places_have_an_order() -> None:
    """The query is last: URLs end in logs."""
    headers = dict(EVERYWHERE)
    found = []
    for place in (*EVERYWHERE, None):
        found.append(find_token(headers, QUERY, cookie="auth"))
        if place is not None:
            del headers[place]
    assert found == ["in-header", "in-subprotocol", "in-cookie", "in-query"]
    assert find_token({}, without_token(QUERY), cookie="auth") is None
    assert without_token(QUERY) == {"session_id": "s1"}


@pytest.mark.parametrize(
    ("header", "value", "token"),
    [
        (b"authorization", b"bearer   x.y.z ", "x.y.z"),
        (b"authorization", b"Basic dXNlcjpwYXNz", None),
        (b"authorization", b"Bearer", None),
        (b"authorization", b"Bearer ", None),
        (b"authorization", b"Bearer a, Bearer b", "a, Bearer b"),
        (b"sec-websocket-protocol", b"bearer.x.y.z,streamer.v1", "x.y.z"),
        (b"sec-websocket-protocol", b"streamer.v1", None),
        (b"sec-websocket-protocol", b"bearer.", None),
        (b"cookie", b'auth="x.y.z"', "x.y.z"),
        (b"cookie", b"xauth=1;auth=x=y; auth=2", "x=y"),
        (b"cookie", b"auth", None),
        (b"cookie", b"\xff\xfe;;=;", None),
    ],
)
def test_a_token_is_taken_as_it_was_sent(header: bytes, value: bytes, token: str | None) -> None:
    """A header that has none, or another scheme, counts as none; two tokens are no valid one."""
    assert find_token({header: value}, {}, cookie="auth") == token


def test_a_cookie_counts_only_where_the_settings_name_it() -> None:
    """Browsers send cookies without being asked."""
    assert find_token(EVERYWHERE | {b"authorization": b""}, {}, cookie=None) == "in-subprotocol"
    assert find_token({b"cookie": b"auth=x"}, {}, cookie=None) is None


def test_subprotocols_are_listed_in_order() -> None:
    """The server looks for its own among them."""
    offered = {b"sec-websocket-protocol": b" a ,bearer.t, streamer.v1"}
    assert subprotocols(offered) == ["a", "bearer.t", "streamer.v1"]


def test_tokens_are_hidden_in_texts() -> None:
    """A client that puts its token into the wrong header must not have it logged."""
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl-_"
    assert hide_tokens(f"App/1 ({token}) x") == "App/1 ((token)) x"
    assert hide_tokens("Mozilla/5.0 (X11; Linux)") == "Mozilla/5.0 (X11; Linux)"


def test_tokens_are_looked_for_once() -> None:
    """Each `eyJ` may begin a token: a text of these must not be searched anew from each.

    That would take minutes here.
    """
    many = "eyJ" * 300_000
    assert hide_tokens(many) == many
    assert hide_tokens(f"{many}.{many}.a (x)") == "(token) (x)"
    assert hide_tokens("eyJ.a .eyJa. a.xeyJb.c..d") == "eyJ.a .eyJa. a.x(token)"
