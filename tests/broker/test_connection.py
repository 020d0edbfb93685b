"""Connections to a real Redis, and to peers that behave worse than one.

Covers streamer.broker.connect, streamer.broker.errors and streamer.urls.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis
import trio
import trio.testing
import trustme

from streamer.broker.connection import (
    INCOMPLETE,
    RECEIVE_BYTES,
    Connection,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    check_server_url,
    open_server,
)
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS


@asynccontextmanager
async def connected(url: str, *, timeout_seconds: float = 5.0) -> AsyncIterator[Connection]:
    """Open a connection within the deadline of a test."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_server(
            url, timeout_seconds=timeout_seconds, client_name="streamer-test"
        ) as connection:
            yield connection


@pytest.fixture
def pair() -> tuple[Connection, trio.SocketStream]:
    """A connection and the other end of its socket."""
    ours, theirs = socket.socketpair()
    return Connection(ours), trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


async def test_commands_are_answered_over_tcp(redis_url: str) -> None:
    """Words are sent unchanged and returned as bytes, numbers as numbers."""
    async with connected(redis_url) as connection:
        assert await connection.execute("SET", b"k\r\n", "v\0é") == b"OK"
        assert await connection.execute("GET", b"k\r\n") == "v\0é".encode()
        assert await connection.execute("RPUSH", "list", 1, 2.5) == 2
        assert await connection.execute("LRANGE", "list", 0, -1) == [b"1", b"2.5"]


async def test_commands_are_answered_over_a_unix_socket(
    redis_server: RedisServer, redis: redis.Redis
) -> None:
    """unix:// reaches the same server."""
    async with connected(redis_server.unix_url) as connection:
        assert await connection.execute("PING") == b"PONG"


async def test_the_url_says_who_we_are(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """User, password and database of the URL are used; the client name is for CLIENT LIST."""
    server = own_redis_server(user="alice on >s#cret ~* &* +@all")
    url = f"redis://alice:s%23cret@127.0.0.1:{server.port}/3"
    async with connected(url) as connection:
        assert await connection.execute("ACL", "WHOAMI") == b"alice"
        info = await connection.execute("CLIENT", "LIST")
        assert b"name=streamer-test " in info
        assert b"db=3 " in info


async def test_a_wrong_password_is_refused_and_not_repeated(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The error gives Redis' own reason and does not contain the password."""
    server = own_redis_server(requirepass="right")
    with pytest.raises(RedisConnectionError) as caught:
        async with connected(f"redis://:wr0ng@127.0.0.1:{server.port}"):
            raise AssertionError
    assert "password" in str(caught.value)
    assert "wr0ng" not in str(caught.value)


async def test_nobody_there_is_an_error_at_once(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A refused connection names the address."""
    server = own_redis_server()
    server.stop()
    with pytest.raises(RedisConnectionError, match=str(server.port)):
        async with connected(server.url):
            raise AssertionError


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:6379",
        "redis://:pass#word@127.0.0.1",  # the unescaped # makes urllib take "pass" for a port
        "redis://:pass@127.0.0.1/first",
        "redis://:pass@127.0.0.1/1/2",
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    """The error about a URL does not contain its password."""
    with pytest.raises(ValueError, match="not a Redis URL") as caught:
        check_server_url(url)
    assert "pass" not in str(caught.value).replace("USER:PASSWORD", "")
    assert caught.value.__suppress_context__  # a traceback shows no more than the message


async def test_an_error_reply_leaves_the_connection_usable(redis_url: str) -> None:
    """An error that Redis answers is no lost connection."""
    async with connected(redis_url) as connection:
        with pytest.raises(RedisReplyError, match="unknown command"):
            await connection.execute("NONSENSE")
        assert await connection.execute("PING") == b"PONG"


async def test_a_silent_redis_is_a_timeout_and_leaves_no_socket() -> None:
    """An attempt whose handshake is never answered ends, and its socket is closed."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def attempt() -> None:
            port = listener.socket.getsockname()[1]
            with pytest.raises(RedisTimeoutError):
                async with connected(f"redis://127.0.0.1:{port}", timeout_seconds=0.1):
                    raise AssertionError

        nursery.start_soon(attempt)
        async with listener, await listener.accept() as peer:
            assert b"SETNAME" in b"".join([data async for data in peer])


async def test_cancelled_while_connecting_it_closes_the_socket() -> None:
    """A socket that the worker thread returns after the cancellation is closed."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        scope = trio.CancelScope()

        async def attempt() -> None:
            port = listener.socket.getsockname()[1]
            with scope:
                async with connected(f"redis://127.0.0.1:{port}"):
                    await trio.sleep_forever()

        nursery.start_soon(attempt)
        async with listener, await listener.accept() as peer:
            while b"SETNAME" not in await peer.receive_some():
                pass
            scope.cancel()
            await peer.send_all(b"+OK\r\n")
            with trio.fail_after(DEADLINE_SECONDS):
                async for _rest in peer:
                    pass
    assert scope.cancelled_caught


async def test_bytes_behind_the_handshake_are_not_lost() -> None:
    """Bytes that follow the last answer of the handshake at once are received."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def answer() -> None:
            async with listener, await listener.accept() as peer:
                await peer.send_all(b"+OK\r\n+eager\r\n")
                async for _ in peer:
                    pass

        nursery.start_soon(answer)
        async with connected(f"redis://127.0.0.1:{listener.socket.getsockname()[1]}") as connection:
            await connection.receive()
            assert connection.reader.gets() == b"eager"


async def test_receiving_is_a_checkpoint_even_when_there_is_always_more(
    pair: tuple[Connection, trio.SocketStream],
) -> None:
    """A Redis that never falls silent does not starve the other tasks."""
    connection, peer = pair
    async with peer:
        await peer.send_all(b"+x\r\n" * (RECEIVE_BYTES // 2))
        with trio.testing.assert_checkpoints():
            assert await connection.receive() == RECEIVE_BYTES
        with trio.testing.assert_checkpoints():
            assert await connection.receive() == RECEIVE_BYTES
    connection.close()


async def test_more_than_the_socket_holds_is_sent_whole(
    pair: tuple[Connection, trio.SocketStream],
) -> None:
    """A long command arrives complete while the peer reads slowly."""
    connection, peer = pair
    word = bytes(range(256)) * 20_000
    received = bytearray()

    async def read() -> None:
        while len(received) < len(word):
            received.extend(await peer.receive_some(50_000))

    with trio.fail_after(DEADLINE_SECONDS):
        async with peer, trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, [(b"SET", b"k", word), (b"PING",)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read)
    connection.close()
    assert (
        received
        == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % len(word) + word + b"\r\n*1\r\n$4\r\nPING\r\n"
    )


async def test_a_peer_that_hangs_up_ends_the_connection(
    pair: tuple[Connection, trio.SocketStream],
) -> None:
    """Receiving and sending both raise RedisConnectionError."""
    connection, peer = pair
    await peer.aclose()
    with pytest.raises(RedisConnectionError, match="closed by Redis"):
        await connection.receive()
    with pytest.raises(RedisConnectionError, match="connection lost"):
        await connection.send([("PING",)])
    connection.close()


async def test_a_reset_ends_the_connection(
    pair: tuple[Connection, trio.SocketStream],
) -> None:
    """A peer that closes without having read what we sent is a lost connection too."""
    connection, peer = pair
    await connection.send([("PING",)])
    await peer.aclose()
    with pytest.raises(RedisConnectionError, match="reset"):
        await connection.receive()
    connection.close()


async def test_a_peer_that_is_not_redis_ends_the_connection(
    pair: tuple[Connection, trio.SocketStream],
) -> None:
    """Bytes that are no reply are a lost connection too."""
    connection, peer = pair
    async with peer:
        await peer.send_all(b"HTTP/1.1 400 Bad Request\r\n")
        with pytest.raises(RedisConnectionError):
            await connection.execute("PING")
    connection.close()


async def test_tls_hands_over_every_byte(
    redis_server: RedisServer, redis: redis.Redis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Replies of many TLS records, and many replies in one record, all arrive."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    proxy = Proxy(redis_server.port, context)
    word = bytes(range(256)) * 2_000
    async with (
        proxy.run(),
        connected(f"rediss://localhost:{proxy.port}?ssl_ca_certs={ca_file}") as connection,
    ):
        assert await connection.execute("SET", "k", word) == b"OK"
        await connection.send([("GET", "k"), *[("ECHO", number) for number in range(1000)]])
        replies: list[bytes] = []
        while len(replies) < 1001:
            await connection.receive()
            while (reply := connection.reader.gets()) is not INCOMPLETE:
                replies.append(reply)
    assert replies == [word, *[b"%d" % number for number in range(1000)]]


async def test_an_unknown_authority_is_refused(redis_server: RedisServer) -> None:
    """A certificate of an unknown authority is refused with its reason."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    proxy = Proxy(redis_server.port, context)
    async with proxy.run():
        with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            async with connected(f"rediss://localhost:{proxy.port}"):
                raise AssertionError
