"""TLS of the client port: writes, sessions, and another certificate for new connections."""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import pytest
import trio
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.testing import capture_logs

from streamer.checks.files import check_certificate
from streamer.edge.tls import TlsWriter
from tests.helpers.clients import RawClient, connected, raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import DEADLINE_SECONDS, eventually


def trust(*authorities: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts some authorities."""
    context = ssl.create_default_context()
    for authority in authorities:
        authority.configure_trust(context)
    return context


def write(issued: trustme.LeafCert, files: dict[str, Path]) -> None:
    """Replace the files of a server's certificate."""
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    files["tls_certificate"].write_bytes(chain)
    issued.private_key_pem.write_to_path(files["tls_key"])


@pytest.mark.parametrize("key_type", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
async def test_new_connections_get_the_new_certificate_and_old_ones_stay(
    tls: dict[str, Path], trusting: ssl.SSLContext, key_type: trustme.KeyType
) -> None:
    """Its authority is another one, and so may be its type of key."""
    async with (
        running_server(**tls) as server,
        connected(server, ssl_context=trusting) as old,
    ):
        authority = trustme.CA(key_type=key_type)
        write(authority.issue_cert("127.0.0.1", key_type=key_type), tls)
        async with connected(server, ssl_context=trusting) as client:
            await client.ping_pong()  # not before it is asked to
        server.reload()
        async with connected(server, ssl_context=trust(authority)) as client:
            await client.ping_pong()
        port = urlsplit(server.websocket_url).port or 0
        async with await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=trusting
        ) as stream:
            with pytest.raises(trio.BrokenResourceError) as refused:
                await stream.do_handshake()
        assert isinstance(refused.value.__cause__, ssl.SSLCertVerificationError)
        await old.ping_pong()


@pytest.mark.parametrize("broken", ["tls_certificate", "tls_key"])
@pytest.mark.parametrize("content", [b"", b"no certificate", None])
async def test_files_that_cannot_be_used_change_nothing(
    tls: dict[str, Path], trusting: ssl.SSLContext, broken: str, content: bytes | None
) -> None:
    """Empty, malformed, absent, or of two certificates: it is logged, and the old one serves."""
    async with running_server(**tls) as server:
        if content is None:
            tls[broken].unlink()
        else:
            tls[broken].write_bytes(content)
        with capture_logs() as logs:
            server.reload()
        assert [entry["event"] for entry in logs] == ["certificate not reloaded"]
        async with connected(server, ssl_context=trusting) as client:
            await client.ping_pong()


async def test_a_passphrase_is_not_asked_for(tls: dict[str, Path]) -> None:
    """On a terminal, OpenSSL would wait for one, and the server with it."""
    private = load_pem_private_key(tls["tls_key"].read_bytes(), password=None)
    async with running_server(**tls) as server:
        tls["tls_key"].write_bytes(
            private.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a secret")
            )
        )
        with capture_logs() as logs:
            server.reload()
    problem = "the key has a passphrase, which cannot be asked for"
    assert problem in logs[0]["reason"]
    (finding,) = check_certificate(tls["tls_certificate"], tls["tls_key"])
    assert problem in finding.message


async def test_a_key_that_is_not_of_the_certificate_changes_nothing(
    tls: dict[str, Path], trusting: ssl.SSLContext
) -> None:
    """As between the moments in which a program replaces the one file and the other."""
    async with running_server(**tls) as server:
        trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(tls["tls_key"])
        server.reload()
        async with connected(server, ssl_context=trusting) as client:
            await client.ping_pong()


async def test_clients_under_tls_share_a_frame(
    tls: dict[str, Path], trusting: ssl.SSLContext
) -> None:
    """One message is made for all of a topic, and written without a task for each."""
    async with (
        running_server(**tls) as server,
        connected(server, ssl_context=trusting) as first,
        connected(server, ssl_context=trusting) as second,
    ):
        for client in (first, second):
            await client.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 1))
        for client in (first, second):
            assert (await client.data())["price"] == 1
        assert server.hub.statistics().groups == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed_without_another_signature(
    tls: dict[str, Path], trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """A client that comes back has a ticket, and uses it where it keeps sessions."""
    trusting.minimum_version = trusting.maximum_version = version
    async with running_server(**tls) as server:
        port = urlsplit(server.websocket_url).port or 0

        def visit(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
            with (
                socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as plain,
                trusting.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as tcp,
            ):
                assert tcp.session_reused is (session is not None)
                tcp.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert tcp.recv(12) == b"HTTP/1.1 404"  # in TLS 1.3, the ticket came before it
                return tcp.session

        ticket = await trio.to_thread.run_sync(visit, None)
        assert ticket is not None
        assert ticket.has_ticket
        await trio.to_thread.run_sync(visit, ticket)


async def test_a_client_that_leaves_in_the_handshake_leaves_nothing_behind(
    tls: dict[str, Path],
) -> None:
    """Half a greeting of TLS, and then the end."""
    async with running_server(**tls) as server:
        async with raw_client(server, opened=False) as client:
            await client.stream.send_all(b"\x16\x03\x01\x02\x00\x01")
            await eventually(lambda: server.statistics().pending_handshakes == 1)
        await eventually(lambda: server.statistics().pending_handshakes == 0)


async def test_a_client_that_breaks_off_is_closed(
    tls: dict[str, Path], trusting: ssl.SSLContext
) -> None:
    """Its socket is reset while a flush writes to it; the others of its group are served."""
    async with (
        running_server(**tls) as server,
        connected(server, ssl_context=trusting) as client,
    ):
        await client.subscribe("stock:A")
        port = urlsplit(server.websocket_url).port or 0
        tcp = await trio.open_tcp_stream("127.0.0.1", port)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream = trio.SSLStream(tcp, trusting, server_hostname="127.0.0.1")
        broken = RawClient(cast("trio.SocketStream", stream))
        await broken.open()
        await broken.send(type="subscribe", subscription_type="stock", targets=["A"])
        await eventually(lambda: server.statistics().subscriptions == 2)
        await tcp.aclose()
        publish(server, "stock:A:price", price("A", 1))
        assert (await client.data())["price"] == 1
        await eventually(lambda: server.statistics().active_connections == 1)


def test_a_write_to_a_connection_that_is_gone_fails() -> None:
    """As to a closed descriptor."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        TlsWriter().write(3, b"late")


async def test_without_tls_there_is_nothing_to_reload() -> None:
    """No certificate, no log entry."""
    async with running_server() as server:
        with capture_logs() as logs:
            server.reload()
        assert logs == []
