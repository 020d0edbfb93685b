"""Another certificate for new connections, while the old ones go on."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trustme
from structlog.testing import capture_logs

from tests.helpers.clients import connected
from tests.helpers.server import running_server


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


async def test_a_key_that_is_not_of_the_certificate_changes_nothing(
    tls: dict[str, Path], trusting: ssl.SSLContext
) -> None:
    """As between the moments in which a program replaces the one file and the other."""
    async with running_server(**tls) as server:
        trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(tls["tls_key"])
        server.reload()
        async with connected(server, ssl_context=trusting) as client:
            await client.ping_pong()


async def test_without_tls_there_is_nothing_to_reload() -> None:
    """No certificate, no log entry."""
    async with running_server() as server:
        with capture_logs() as logs:
            server.reload()
        assert logs == []
