"""Clients behind proxies: each is limited, listed and logged by its own address."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from streamer.server import Server
from tests.helpers.clients import Client, RawClient, connected, open_client, raw_client
from tests.helpers.proxy_headers import v1, v2, v2_of
from tests.helpers.server import running_server
from tests.helpers.timing import eventually

TRUSTED = {"trusted_proxies": ("127.0.0.0/8",)}
ELSEWHERE = {"trusted_proxies": ("192.0.2.0/24",)}
HEADER = {"proxy_protocol": "required"}


def forwarded(address: str) -> list[tuple[bytes, bytes]]:
    """The headers of a request through a proxy: one that the client made up, and the proxy's."""
    return [(b"X-Forwarded-For", b"6.6.6.6"), (b"X-Forwarded-For", address.encode())]


@asynccontextmanager
async def behind(server: Server, header: bytes) -> AsyncIterator[RawClient]:
    """A connection that begins with a PROXY header, and on which nothing was asked for yet."""
    async with raw_client(server, opened=False) as client:
        await client.stream.send_all(header)
        yield client


def addresses(server: Server) -> list[str]:
    """The addresses in the list of connections."""
    return [connection.remote_address for connection in server.connections()]


def refused(server: Server, cause: str) -> int:
    """How many connections were refused for a cause."""
    return server.statistics().rate_limiting.connections_refused[cause]


# Headers of the request


async def test_clients_of_a_proxy_are_limited_by_their_own_address() -> None:
    """Eight addresses have their connection each, one of them not a second one."""
    async with (
        running_server(**TRUSTED, max_connections_per_address=1) as server,
        AsyncExitStack() as stack,
    ):
        expected = [f"198.51.100.{number}" for number in range(8)]
        clients: list[Client] = []
        for address in expected:
            opened = connected(server, headers=forwarded(address))
            clients.append(await stack.enter_async_context(opened))
        assert addresses(server) == expected
        with structlog.testing.capture_logs() as logs:
            async with open_client(server, headers=forwarded(expected[0])) as second:
                assert await second.closed() == 1013
        assert [entry["address"] for entry in logs] == [expected[0]]
        for client in clients:
            await client.ping_pong()


@pytest.mark.parametrize("settings", [{}, ELSEWHERE])
async def test_headers_of_other_peers_are_ignored(settings: dict[str, tuple[str, ...]]) -> None:
    """Without trusted proxies, and from a peer that is none, its own address counts."""
    async with (
        running_server(**settings) as server,
        connected(server, headers=[*forwarded("198.51.100.7"), (b"Forwarded", b"for=6.6.6.6")]),
    ):
        assert addresses(server) == ["127.0.0.1"]


async def test_forwarded_is_understood_as_well() -> None:
    """RFC 7239; a proxy that hides its client is the client."""
    async with running_server(**TRUSTED) as server:
        for value, address in (
            (b'for=6.6.6.6, for="[2001:db8::7]:4711"', "2001:db8::7"),
            (b"for=unknown", "127.0.0.1"),
        ):
            async with connected(server, headers=[(b"Forwarded", value)]):
                assert addresses(server) == [address]
            await eventually(lambda: not server.active_connections)


async def test_ended_sessions_are_dropped_by_the_clients_address() -> None:
    """A client that ends sessions all the time loses its own, not that of another of the proxy."""
    async with running_server(**TRUSTED, max_session_bytes=5000) as server:

        async def leave(address: str) -> str:
            async with connected(server, headers=forwarded(address)) as client:
                await client.subscribe("stock:A")
                session_id = client.session_id
            await eventually(lambda: not server.active_connections)
            return session_id

        quiet = await leave("198.51.100.7")
        # Of IPv6 all addresses of a network count as one.
        first, *_ = [await leave(f"2001:db8::{number}") for number in range(20)]
        async with connected(server) as client:
            answer = await client.request(type="reconnect", session_id=first)
            assert answer["code"] == "SESSION_RESTORATION_FAILED"
            await client.send(type="reconnect", session_id=quiet)
            assert (await client.receive())["type"] == "reconnected"


async def test_a_refused_request_is_logged_by_its_clients_address() -> None:
    """It asked for another path, so that it has no WebSocket, but it named its client."""
    async with running_server(**TRUSTED) as server:
        with structlog.testing.capture_logs() as logs:
            async with raw_client(server, opened=False) as client:
                await client.open("/nothing", b"X-Forwarded-For: 198.51.100.7\r\n")
                await client.response()
            await eventually(lambda: refused(server, "handshake"))
        assert [entry["address"] for entry in logs] == ["198.51.100.7"]


# The PROXY protocol


@pytest.mark.parametrize("version", [v1, v2])
@pytest.mark.parametrize("trusted", [{}, TRUSTED])
async def test_the_proxy_protocol_names_the_client(
    version: Callable[[str], bytes], trusted: dict[str, tuple[str, ...]]
) -> None:
    """Version 1 and 2, over IPv4 and IPv6; the limit is that of the client's address."""
    async with running_server(**HEADER, **trusted, max_connections_per_address=1) as server:
        async with (
            connected(server, preamble=version("198.51.100.7")) as first,
            connected(server, preamble=version("2001:db8::7")),
        ):
            assert addresses(server) == ["198.51.100.7", "2001:db8::7"]
            async with open_client(server, preamble=version("198.51.100.7")) as second:
                assert await second.closed() == 1013
            await first.ping_pong()
        assert refused(server, "address_full") == 1


@pytest.mark.parametrize("version", [v1, v2])
async def test_the_header_comes_before_tls(
    version: Callable[[str], bytes], tls: dict[str, Path], trusting: ssl.SSLContext
) -> None:
    """The TLS handshake follows it, and no byte of that is lost."""
    async with (
        running_server(**HEADER, **tls) as server,
        connected(server, preamble=version("198.51.100.7"), ssl_context=trusting) as client,
    ):
        assert addresses(server) == ["198.51.100.7"]
        await client.ping_pong()


async def test_a_proxy_that_names_no_client_speaks_for_itself() -> None:
    """LOCAL and UNKNOWN, as in health checks."""
    async with running_server(**HEADER, **TRUSTED) as server:
        for header in b"PROXY UNKNOWN\r\n", v2_of(0x20, 0, b""):
            async with connected(server, preamble=header):
                assert addresses(server) == ["127.0.0.1"]
            await eventually(lambda: not server.active_connections)


async def test_a_trusted_client_of_the_header_may_name_its_own() -> None:
    """A balancer of connections before proxies of requests: each adds what it knows."""
    async with (
        running_server(**HEADER, trusted_proxies=("127.0.0.1", "10.0.0.0/8")) as server,
        connected(server, preamble=v2("10.1.1.1"), headers=forwarded("198.51.100.7")),
        connected(server, preamble=v2("203.0.113.9"), headers=forwarded("198.51.100.7")),
    ):
        assert addresses(server) == ["198.51.100.7", "203.0.113.9"]


@pytest.mark.parametrize("header", [b"GET /v1/ws HTTP/1.1\r\n", b"PROXY TCP4 x\r\n", b"\x16\x03"])
async def test_a_connection_without_a_valid_header_is_closed_and_counted(header: bytes) -> None:
    """At once, and nothing is answered."""
    async with running_server(**HEADER) as server, behind(server, header) as client:
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.response()
        assert refused(server, "proxy_protocol") == 1
        assert not server.statistics().pending_handshakes


async def test_a_header_of_another_peer_is_not_believed() -> None:
    """With trusted proxies, no other peer is served."""
    async with running_server(**HEADER, **ELSEWHERE) as server:
        async with behind(server, v1("198.51.100.7")) as client:
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await client.response()
        assert refused(server, "proxy_protocol") == 1


@pytest.mark.parametrize("beginning", [b"", b"PROXY TCP4 198."])
async def test_a_header_that_takes_too_long_is_cut(beginning: bytes, mock_clock: MockClock) -> None:
    """It is a part of the handshake, which has ten seconds in all."""
    async with running_server(**HEADER) as server, behind(server, beginning) as client:
        await eventually(lambda: server.statistics().pending_handshakes == 1)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        mock_clock.jump(10.5)
        assert await client.rest() == b""
        assert refused(server, "handshake") == 1


# Handshakes that are not finished


async def test_a_client_that_holds_handshakes_open_takes_no_place_of_another() -> None:
    """The slowest 10 of 30 from one address behind a proxy are cut; another client's is not."""
    async with (
        running_server(**HEADER, max_connections_per_address=5) as server,
        behind(server, v1("198.51.100.7")) as other,
        AsyncExitStack() as stack,
    ):
        await eventually(lambda: server.statistics().pending_handshakes == 1)
        for _ in range(30):
            await stack.enter_async_context(behind(server, v1("198.51.100.8")))
        await eventually(lambda: refused(server, "handshake") == 10)
        assert server.statistics().pending_handshakes == 21
        await other.open()
        assert (await other.response()).startswith(b"HTTP/1.1 101 ")
        assert addresses(server) == ["198.51.100.7"]


async def test_a_proxy_may_have_many_handshakes_at_a_time() -> None:
    """Forty whose request has not come yet are nobody's; without a proxy 20 would be cut."""
    async with (
        running_server(**TRUSTED, max_connections_per_address=5) as server,
        AsyncExitStack() as stack,
    ):
        clients = [
            await stack.enter_async_context(raw_client(server, opened=False)) for _ in range(40)
        ]
        await eventually(lambda: server.statistics().pending_handshakes == 40)
        for number, client in enumerate(clients):
            await client.open(headers=b"X-Forwarded-For: 198.51.100.%d\r\n" % number)
            assert (await client.response()).startswith(b"HTTP/1.1 101 ")
        assert not refused(server, "handshake")


async def test_requests_of_one_client_that_wait_for_a_place_are_bounded(
    mock_clock: MockClock,
) -> None:
    """Its address is known with the request, and counts while a silent connection is pinged."""
    async with (
        running_server(**TRUSTED, max_connections_per_address=1) as server,
        AsyncExitStack() as stack,
    ):
        header = b"X-Forwarded-For: 198.51.100.7\r\n"
        silent = await stack.enter_async_context(raw_client(server, opened=False))
        await silent.open(headers=header)
        await eventually(lambda: server.active_connections == 1)
        mock_clock.jump(2)
        for _ in range(20):
            waiting = await stack.enter_async_context(raw_client(server, opened=False))
            await waiting.open(headers=header)
        await eventually(lambda: refused(server, "handshake") == 4)
        assert server.statistics().pending_handshakes == 16


async def test_all_handshakes_together_are_bounded_behind_a_proxy_too() -> None:
    """If too many name nobody yet, the slowest is cut."""
    async with running_server(**HEADER, max_handshakes=10) as server, AsyncExitStack() as stack:
        for _ in range(15):
            await stack.enter_async_context(raw_client(server, opened=False))
        await eventually(lambda: refused(server, "handshake") == 5)
        assert server.statistics().pending_handshakes == 10
