"""The server behind real proxies: nginx and Caddy as docs/how-to/proxy.md sets them up."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
import trio
import trustme

from streamer.server import Server
from tests.helpers import front_proxies
from tests.helpers.clients import Client, connected, open_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

ADDRESSES = [f"127.0.1.{number}" for number in range(1, 9)]
"""Addresses of clients: on Linux all of 127.0.0.0/8 is this machine."""

MADE_UP = [(b"X-Forwarded-For", b"6.6.6.6"), (b"Forwarded", b"for=6.6.6.6")]
"""Headers by which a client tries to have another address."""


@attrs.frozen
class Certificate:
    """A certificate for 127.0.0.1, and clients that trust it."""

    chain: Path
    key: Path
    trusting: ssl.SSLContext


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """One for all tests here."""
    directory = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return Certificate(chain, key, trusting)


@asynccontextmanager
async def behind_nginx(
    server: Server, certificate: Certificate, directory: Path
) -> AsyncIterator[int]:
    """Run nginx with TLS and X-Forwarded-For; yield its port."""
    port = front_proxies.free_port()
    site = front_proxies.example(
        "nginx.conf",
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/ssl/stream.example.com/fullchain.pem": certificate.chain,
            "/etc/ssl/stream.example.com/privkey.pem": certificate.key,
            "/var/log/nginx/streamer.log": directory / "access.log",
            "server 127.0.0.1:8765": f"server 127.0.0.1:{port_of(server)}",
        },
    )
    async with front_proxies.nginx(directory, port, http=site):
        yield port


@asynccontextmanager
async def behind_caddy(
    server: Server, certificate: Certificate, directory: Path
) -> AsyncIterator[int]:
    """Run Caddy with TLS and X-Forwarded-For; yield its port."""
    port = front_proxies.free_port()
    site = front_proxies.example(
        "Caddyfile",
        {
            "stream.example.com {": f"https://127.0.0.1:{port} {{\n"
            f"\ttls {certificate.chain} {certificate.key}",
            "127.0.0.1:8765": f"127.0.0.1:{port_of(server)}",
        },
    )
    async with front_proxies.caddy(directory, port, site):
        yield port


@asynccontextmanager
async def behind_nginx_stream(
    server: Server, certificate: Certificate, directory: Path
) -> AsyncIterator[int]:
    """Run nginx with the PROXY protocol, before TLS that ends in the server; yield its port."""
    port = front_proxies.free_port()
    block = front_proxies.example(
        "nginx-stream.conf",
        {
            "listen 443;": f"listen 127.0.0.1:{port};",
            "server 127.0.0.1:8765": f"server 127.0.0.1:{port_of(server)}",
        },
    )
    top = f"load_module {front_proxies.STREAM_MODULE};\n{block}"
    async with front_proxies.nginx(directory, port, top=top):
        yield port


def port_of(server: Server) -> int | None:
    """The port for clients."""
    return urlsplit(server.websocket_url).port


Front = Callable[[Server, Certificate, Path], AbstractAsyncContextManager[int]]

FRONTS = [
    pytest.param(behind_nginx, {}, id="nginx", marks=front_proxies.needs_nginx),
    pytest.param(behind_caddy, {}, id="caddy", marks=front_proxies.needs_caddy),
    pytest.param(
        behind_nginx_stream,
        {"proxy_protocol": "required"},
        id="nginx-stream",
        marks=front_proxies.needs_stream_module,
    ),
]


@pytest.mark.parametrize(("front", "settings"), FRONTS)
async def test_clients_are_served_and_counted_through_a_proxy(
    front: Front, settings: dict[str, str], certificate: Certificate, tmp_path: Path
) -> None:
    """Eight addresses have a connection each over TLS and get prices; one may not have two."""
    tls = {"tls_certificate": certificate.chain, "tls_key": certificate.key} if settings else {}
    async with (
        running_server(
            **settings, **tls, trusted_proxies=("127.0.0.1",), max_connections_per_address=1
        ) as server,
        front(server, certificate, tmp_path) as proxy_port,
        AsyncExitStack() as stack,
    ):
        clients: list[Client] = []
        for address in ADDRESSES:
            opened = connected(
                server,
                proxy_port=proxy_port,
                local_address=address,
                headers=MADE_UP,
                ssl_context=certificate.trusting,
            )
            clients.append(await stack.enter_async_context(opened))
        assert [connection.remote_address for connection in server.connections()] == ADDRESSES
        for client in clients:
            await client.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 72_500))
        for client in clients:
            assert (await client.data())["price"] == 72_500
        async with open_client(
            server,
            proxy_port=proxy_port,
            local_address=ADDRESSES[0],
            headers=MADE_UP,
            ssl_context=certificate.trusting,
        ) as second:
            assert await second.closed() == 1013
        for client in clients:
            await client.ping_pong()


@pytest.mark.parametrize(("front", "settings"), FRONTS[:2])
async def test_events_are_passed_on_at_once(
    front: Front, settings: dict[str, str], certificate: Certificate, tmp_path: Path
) -> None:
    """A stream of server-sent events is not held back until a buffer of the proxy is full."""
    async with (
        running_server(**settings, trusted_proxies=("127.0.0.1",)) as server,
        front(server, certificate, tmp_path) as proxy_port,
        await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", proxy_port, ssl_context=certificate.trusting
        ) as stream,
    ):
        await stream.send_all(b"GET /v1/stream?topics=stock:A HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await eventually(lambda: server.statistics().subscriptions == 1)
        for value in 72_500, 72_600:
            publish(server, "stock:A:price", price("A", value))
            received = b""
            while b"%d" % value not in received:
                data = await stream.receive_some()
                assert data, received
                received += data


@front_proxies.needs_nginx
async def test_nginx_logs_no_query(certificate: Certificate, tmp_path: Path) -> None:
    """A token or a session's id may be in it; the access log has the path alone."""
    async with (
        running_server(trusted_proxies=("127.0.0.1",)) as server,
        behind_nginx(server, certificate, tmp_path) as proxy_port,
    ):
        async with connected(
            server,
            proxy_port=proxy_port,
            path="/v1/ws?token=secret&session_id=secret",
            ssl_context=certificate.trusting,
        ) as client:
            assert (await client.receive_type("error"))["code"] == "SESSION_RESTORATION_FAILED"
        log = tmp_path / "access.log"
        await eventually(log.read_text)  # written when the connection has ended
        assert "GET /v1/ws" in log.read_text()
        assert "secret" not in log.read_text()
