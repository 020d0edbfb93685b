"""Headers of the PROXY protocol, whole, in pieces, and malformed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from streamer.edge.proxy_protocol import ProxyProtocolError, header_length, read_header
from tests.helpers.proxy_headers import SIGNATURE, v1, v2, v2_of

V4 = bytes([198, 51, 100, 7, 192, 0, 2, 1]) + b"\x12\x67\x22\x3d"
V6 = bytes.fromhex("20010db8000000000000000000000007") * 2 + b"\x12\x67\x22\x3d"
TLV = b"\x03\x00\x04\x00\x00\x00\x00" + b"\x02\x00\x0bexample.com"


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[trio.SocketStream, trio.socket.SocketType]]:
    """A proxy's stream, and the socket that the server has accepted."""
    ours, theirs = socket.socketpair()
    with trio.socket.from_stdlib_socket(theirs) as accepted:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as proxy:
            yield proxy, accepted


HEADERS = [
    (v1("198.51.100.7"), "198.51.100.7"),
    (v1("2001:db8::7"), "2001:db8::7"),
    (v1("::ffff:198.51.100.7"), "198.51.100.7"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    (v2("198.51.100.7"), "198.51.100.7"),
    (v2("2001:db8::7"), "2001:db8::7"),
    (v2_of(0x21, 0x11, V4 + TLV), "198.51.100.7"),
    (v2_of(0x21, 0x21, V6 + TLV), "2001:db8::7"),
    (v2_of(0x20, 0x00, b""), None),
    (v2_of(0x20, 0xFF, b"whatever"), None),
    (v2_of(0x21, 0x00, TLV), None),
    (v2_of(0x21, 0x12, V4), None),
    (v2_of(0x21, 0x31, bytes(216)), None),
    (v2_of(0x21, 0x11, V4 + bytes(4096 - 16 - 12)), "198.51.100.7"),
]


@pytest.mark.parametrize(("header", "client"), HEADERS)
async def test_a_header_is_read_and_nothing_after_it(header: bytes, client: str | None) -> None:
    """The bytes after it are left for TLS or HTTP."""
    async with pair() as (proxy, accepted):
        await proxy.send_all(header + b"\r\nGET\r\n")
        assert await read_header(accepted) == client
        assert await accepted.recv(100) == b"\r\nGET\r\n"


@pytest.mark.parametrize(("header", "client"), HEADERS[::5])
async def test_a_header_may_come_in_pieces(header: bytes, client: str | None) -> None:
    """Byte by byte, without a busy loop in between."""
    async with pair() as (proxy, accepted), trio.open_nursery() as nursery:

        async def read() -> None:
            assert await read_header(accepted) == client
            assert await accepted.recv(100) == b"rest"

        nursery.start_soon(read)
        for byte in header:
            await wait_all_tasks_blocked()
            await proxy.send_all(bytes([byte]))
        await wait_all_tasks_blocked()
        await proxy.send_all(b"rest")


@pytest.mark.parametrize(
    "header",
    [
        b"GET /v1/ws HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PROXIES",
        b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
        b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n",
        b"PROXY TCP4 1.1.1.\xff 2.2.2.2 1 2\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n" + b"x" * 107,
        b"PROXY UNKNOWN " + b"x" * 94 + b"\r\n",
        SIGNATURE[:-1] + b"X",
        v2_of(0x11, 0x11, V4),
        v2_of(0x22, 0x11, V4),
        v2_of(0x21, 0x41, V4),
        v2_of(0x21, 0x13, V4),
        v2_of(0x21, 0x11, V4[:-1]),
        v2_of(0x21, 0x21, V6[:-1]),
        v2_of(0x21, 0x11, V4 + bytes(4096)),
    ],
)
async def test_what_is_no_header_is_an_error(header: bytes) -> None:
    """At once, as soon as the bytes show it."""
    async with pair() as (proxy, accepted):
        await proxy.send_all(header)
        with pytest.raises(ProxyProtocolError):
            await read_header(accepted)


@pytest.mark.parametrize("beginning", [b"", b"PROXY TCP4 1.1", SIGNATURE, v2("198.51.100.7")[:-1]])
async def test_a_connection_that_ends_before_its_header_is_broken(beginning: bytes) -> None:
    """As a load balancer does that only asks whether the port is open."""
    async with pair() as (proxy, accepted):
        await proxy.send_all(beginning)
        await proxy.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await read_header(accepted)


def test_the_longest_header_of_version_1_is_read() -> None:
    """107 bytes with its end, and not one more."""
    header = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(header) == 107
    assert header_length(header) == 107
    assert header_length(header[:-1]) is None
