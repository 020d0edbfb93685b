"""A request that is no WebSocket handshake is refused at once and affects no other client."""

from __future__ import annotations

import os
import socket

import pytest
import structlog
from trio.testing import MockClock

from streamer.edge.handshake import HandshakeFailedError, Request, receive_nowait
from tests.helpers.clients import connected, raw_client
from tests.helpers.server import running_server
from tests.helpers.timing import eventually

UPGRADE = (
    b"Host: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
        (b"GET /v1/ws HTTP/1.0\r\n\r\n", b"426"),
        (b"POST /v1/ws HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"426"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /v1/ws/ HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"404"),
        (b"GET //v1/ws HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"404"),
        (b"POST /v1/ws HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"400"),
        (b"GET /v1/ws HTTP/1.1\r\n" + UPGRADE.replace(b"13", b"8") + b"\r\n", b"426"),
        (b"GET /v1/ws HTTP/1.1\r\n" + UPGRADE.replace(b"dGhl", b"") + b"\r\n", b"400"),
        (b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 60_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\n", b"431"),
        (b"GET /v1/ws HTTP/1.1\r\nX: " + b"x" * 17_000 + b"\r\n" + UPGRADE + b"\r\n", b"431"),
        (b"GET /v1/ws?" + b"x" * 17_000 + b" HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"431"),
        (b"GET /v1/ws?" + b"a=b&" * 201 + b" HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"400"),
        (b"GET /v1/ws HTTP/1.1\r\nContent-Length: 5\r\n" + UPGRADE + b"\r\nhello", b"400"),
        (
            b"GET /v1/ws HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + UPGRADE + b"\r\n0\r\n\r\n",
            b"400",
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not TLS\r\n\r\n", b"400"),
        (b"GET [ HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"4"),
        (b"GET http://[/v1/ws HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"4"),
        (b"GET \xff HTTP/1.1\r\n" + UPGRADE + b"\r\n", b"4"),
    ],
)
async def test_what_asks_for_no_websocket_gets_its_answer_at_once(
    request_bytes: bytes, status: bytes, mock_clock: MockClock
) -> None:
    """The answer and the close of the connection come before any virtual time passes."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.stream.send_all(request_bytes)
        response = await client.response()
        assert response.startswith(b"HTTP/1.1 " + status), response
        await client.rest()
        assert server.statistics().connections_total == 0


async def test_the_answer_to_a_plain_request_says_what_to_do(mock_clock: MockClock) -> None:
    """426 names the protocol to upgrade to (RFC 9110, 15.5.22)."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.stream.send_all(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n\r\n")
        head = (await client.response()).lower()
        assert b"upgrade: websocket" in head
        assert b"connection: close, upgrade" in head


async def test_another_version_is_told_what_to_speak() -> None:
    """The same answer has the version that is served (RFC 6455, 4.4)."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        request = b"GET /v1/ws HTTP/1.1\r\n" + UPGRADE.replace(b"13", b"8") + b"\r\n"
        await client.stream.send_all(request)
        head = (await client.response()).lower()
        assert b"upgrade: websocket" in head
        assert b"sec-websocket-version: 13" in head


@pytest.mark.parametrize("beginning", [b"", b"GET /v1/ws HTTP/1.1\r\nHost:"])
async def test_a_handshake_that_takes_too_long_is_cut(
    beginning: bytes, mock_clock: MockClock
) -> None:
    """After 10 s, however slowly it trickles (slowloris); a neighbour notices nothing."""
    async with (
        running_server() as server,
        connected(server) as neighbour,
        raw_client(server, opened=False) as client,
    ):
        await client.stream.send_all(beginning)
        for _ in range(9):
            await neighbour.ping_pong()
            mock_clock.jump(1)
            await client.stream.send_all(b"x" * bool(beginning))
        await neighbour.ping_pong()
        mock_clock.jump(1.5)
        assert await client.rest() == b""


async def test_a_peer_that_goes_away_before_its_handshake_is_forgotten() -> None:
    """Closed or reset, with and without half a request."""
    async with running_server() as server, connected(server) as neighbour:
        for data in (b"", b"GET /v1/ws"):
            async with raw_client(server, opened=False) as client:
                await client.stream.send_all(data)
            async with raw_client(server, opened=False) as client:
                await client.stream.send_all(data)
                client.reset()
        await neighbour.ping_pong()
        assert server.statistics().connections_total == 1


def test_a_request_that_has_arrived_whole_is_read_without_waiting() -> None:
    """The bytes of any other are returned as far as they have come; a close is noticed."""
    request = b"GET /v1/ws?a=b HTTP/1.1\r\n" + UPGRADE + b"\r\n"
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)

        def received(data: bytes) -> Request | bytes:
            os.write(there.fileno(), data)
            return receive_nowait(here.fileno())

        assert receive_nowait(here.fileno()) == b""
        whole = received(request + b"\x81")
        assert isinstance(whole, Request)
        assert (whole.query, whole.trailing) == ({"a": "b"}, b"\x81")
        for other in (request[:-1], request.replace(b"=b", b"=#b"), b"GET / HTTP/1.1\r\n\r\n"):
            assert received(other) == other
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeFailedError):
            receive_nowait(here.fileno())


@pytest.mark.parametrize("first_bytes", [1, 40, len(UPGRADE) + 20])
async def test_a_request_may_arrive_in_pieces(first_bytes: int) -> None:
    """As bytes that were there at once, and bytes that came later."""
    request = b"GET /v1/ws?a=b HTTP/1.1\r\n" + UPGRADE + b"\r\n"
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.stream.send_all(request[:first_bytes])
        await eventually(lambda: server.statistics().pending_handshakes == 1)
        await client.stream.send_all(request[first_bytes:])
        assert (await client.response()).startswith(b"HTTP/1.1 101 ")
        assert server.statistics().pending_handshakes == 0


async def test_of_a_long_user_agent_the_beginning_is_kept() -> None:
    """It is held for as long as the client is connected; so is that of a stream over HTTP."""
    long = b"User-Agent: " + b"x" * 10_000 + b"\r\n"
    stream = b"GET /v1/stream?topics=stock:A HTTP/1.1\r\nHost: x\r\n" + long + b"\r\n"
    async with (
        running_server() as server,
        raw_client(server, opened=False) as client,
        raw_client(server, opened=False) as listener,
    ):
        await client.stream.send_all(b"GET /v1/ws HTTP/1.1\r\n" + long + UPGRADE + b"\r\n")
        await client.response()
        await listener.stream.send_all(stream)
        await listener.response()
        assert [one.user_agent for one in server.connections()] == ["x" * 256] * 2


async def test_query_and_headers_are_read() -> None:
    """User-Agent is listed; unknown parameters are ignored."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.open("/v1/ws?a=1&b=%20", b"User-Agent: test\xe9\r\nX: 1\r\nX: 2\r\n")
        assert (await client.response()).startswith(b"HTTP/1.1 101 ")
        (connection,) = server.connections()
        assert connection.user_agent == "test\xe9"
        assert connection.remote_address == "127.0.0.1"


TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize("offered", [b"streamer.v1, bearer.x", b"a, streamer.v1"])
async def test_the_server_selects_its_subprotocol(offered: bytes) -> None:
    """A browser needs the answer, and the token beside it must not be in it."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.open("/v1/ws", b"Sec-WebSocket-Protocol: %b\r\n" % offered)
        response = await client.response()
        assert b"\r\nSec-WebSocket-Protocol: streamer.v1\r\n" in response
        assert b"bearer" not in response


async def test_no_subprotocol_is_selected_that_was_not_offered() -> None:
    """A client must fail a connection with a subprotocol that it has not offered (RFC 6455)."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.open("/v1/ws", b"Sec-WebSocket-Protocol: other, bearer.x\r\n")
        response = await client.response()
        assert response.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-protocol" not in response.lower()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/ws HTTP/1.1\r\nAuthorization Bearer TOKEN\r\n\r\n",
        b"GET /v1/ws?token=TOKEN and more HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET //[TOKEN]/v1/ws HTTP/1.1\r\n" + UPGRADE + b"\r\n",
        b"GET /v1?token=TOKEN HTTP/1.1\r\n" + UPGRADE + b"\r\n",
    ],
)
async def test_a_refusal_quotes_no_token(request_bytes: bytes) -> None:
    """Neither the answer nor the log repeats what the client sent."""
    with structlog.testing.capture_logs() as logs:
        async with running_server() as server, raw_client(server, opened=False) as client:
            await client.stream.send_all(request_bytes.replace(b"TOKEN", TOKEN.encode()))
            assert TOKEN.encode() not in await client.response()
            await client.rest()
            client.reset()
            await eventually(lambda: any(entry["event"] == "connection refused" for entry in logs))
    assert TOKEN not in str(logs)


async def test_a_token_in_the_wrong_header_is_not_listed() -> None:
    """The list of connections shows the User-Agent."""
    async with running_server() as server, raw_client(server, opened=False) as client:
        await client.open("/v1/ws", f"User-Agent: App ({TOKEN})\r\n".encode())
        await client.response()
        assert TOKEN not in str(server.connections())
