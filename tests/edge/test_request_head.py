"""The heads of ordinary requests, which h11 would read in the same way."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.edge.request_head import read_head

ORDINARY = (
    b"GET /v1/ws?session_id=s-1 HTTP/1.1\r\nHost: 127.0.0.1:8765\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\nX-Twice:  a \r\nx-twice: b\r\nEmpty:\r\n\r\n"
)


def by_h11(data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Return the target, headers and trailing bytes as h11 reads them. Raises its errors."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(data)
    request = http.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.http_version) == (b"GET", b"1.1")
    headers: dict[bytes, bytes] = {}
    for name, value in request.headers:
        headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
    assert http.next_event() == h11.EndOfMessage()
    return request.target, headers, bytes(http.trailing_data[0])


def test_an_ordinary_handshake_is_read() -> None:
    """Target, headers and what follows the head."""
    head = read_head(ORDINARY + b"\x81\x80")
    assert head is not None
    assert (head.target, head.trailing) == (b"/v1/ws?session_id=s-1", b"\x81\x80")
    assert head.headers[b"x-twice"] == b"a, b"
    assert head.headers[b"empty"] == b""


@pytest.mark.parametrize(
    "request_text",
    [
        ORDINARY[:-1],
        ORDINARY.replace(b"GET", b"POST"),
        ORDINARY.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ORDINARY.replace(b"/v1", b"http://h/v1"),
        ORDINARY.replace(b"Host: 127.0.0.1:8765\r\n", b""),
        ORDINARY.replace(b"Empty:", b"Host: other"),
        ORDINARY.replace(b"Empty:", b"Content-Length: 1"),
        ORDINARY.replace(b"Empty:", b"Transfer-Encoding: chunked"),
        ORDINARY.replace(b"Empty:", b"Expect: 100-continue"),
        ORDINARY.replace(b"Empty:", b"Empty"),
        ORDINARY.replace(b"Empty:", b"Empty :"),
        ORDINARY.replace(b"Empty:", b" folded: a"),
        ORDINARY.replace(b"Empty:", b"Lone: a\nb"),
        ORDINARY.replace(b"Empty:", b"Return: a\rb"),
        ORDINARY.replace(b"Empty:", b"Nul: \0"),
        ORDINARY.replace(b"Empty:", b"Name: \xc3\xa9"),
        b"\r\n" + ORDINARY,
        b"\x16\x03\x01\r\n\r\n",
    ],
)
def test_anything_else_is_left_to_h11(request_text: bytes) -> None:
    """Whatever is wrong, unusual or not yet complete."""
    assert read_head(request_text) is None


pieces = st.sampled_from(
    [
        *(
            b"GET ",
            b"/v1/ws",
            b" HTTP/1.1",
            b"\r\n",
            b"\n",
            b"\r",
            b"Host",
            b":",
            b" ",
            b"\t",
            b",",
        ),
        *(b"x", b"-", b"Content-Length", b"0", b"\x00", b"\x80", b"Host: a\r\n", b"\r\n\r\n", b"%"),
    ]
)


@given(st.lists(pieces, max_size=20), st.binary(max_size=4))
def test_h11_reads_the_same(mutations: list[bytes], trailing: bytes) -> None:
    """Whatever is read here, h11 accepts, and reads as the same request."""
    data = b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n" + b"".join(mutations) + b"\r\n\r\n" + trailing
    head = read_head(data)
    if head is not None:
        assert (head.target, head.headers, head.trailing) == by_h11(data)
