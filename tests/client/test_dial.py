"""Connecting to a server: TLS, deadlines, and pings during the close."""

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio_websocket
import trustme

from streamer.client import ConnectError, open_client
from streamer.server import Server
from tests.client.conftest import Line, Peer, Serve


@pytest.fixture
async def tls_server(start_server: Serve, authority: trustme.CA, tmp_path: Path) -> Server:
    """Start a server with a certificate for localhost."""
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    return await start_server(
        host="localhost",
        tls_certificate=tmp_path / "chain.pem",
        tls_key=tmp_path / "key.pem",
    )


@pytest.fixture
def authority() -> trustme.CA:
    """The authority that signs the server's certificate."""
    return trustme.CA()


async def test_wss_works_with_an_authority_one_trusts(
    tls_server: Server, authority: trustme.CA
) -> None:
    """The client subscribes over TLS."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with open_client(tls_server.websocket_url, ssl_context=context) as client:
        await client.subscribe(["stock:005930"])
        assert tls_server.statistics().subscriptions == 1


async def test_a_wrong_certificate_is_told_at_once(tls_server: Server, server: Server) -> None:
    """So are a server without TLS and an unknown host name; each error has its reason."""
    with pytest.raises(ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        async with open_client(tls_server.websocket_url):
            pytest.fail("connected")
    with pytest.raises(ConnectError, match="cannot connect to wss:"):
        async with open_client(server.websocket_url.replace("ws:", "wss:")):
            pytest.fail("connected")
    with pytest.raises(ConnectError, match=r"cannot connect to ws://no\.such\.invalid: "):
        async with open_client("ws://no.such.invalid"):
            pytest.fail("connected")


async def test_a_connection_that_is_not_taken_up_is_given_up() -> None:
    """The TLS handshake has a deadline too."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(ConnectError, match=r"no answer within 0\.1 s"):
            async with open_client(f"wss://127.0.0.1:{port}", connect_timeout_seconds=0.1):
                pytest.fail("connected")


async def test_pings_that_cross_the_close_do_no_harm(peer: Peer) -> None:
    """The server does not read, so it sends pings after the client's close frame."""

    async def ping_without_end(line: Line) -> None:
        await line.greet()
        socket = await line.socket()
        while not socket.closed:
            with trio.move_on_after(0.001), suppress(trio_websocket.ConnectionClosed):
                await socket.ping()

    async with open_client(await peer(ping_without_end), close_timeout_seconds=0.3) as client:
        # What nobody takes from the peer's queue stops its reader.
        with trio.move_on_after(0.1):
            await client.subscribe(["stock:005930"])
