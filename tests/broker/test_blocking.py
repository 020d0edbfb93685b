"""Connecting in a worker thread: its deadline, and its socket if no task waits for it."""

import gc
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from streamer.broker.blocking import BlockingConnector, Handover
from streamer.broker.connect import open_connection
from streamer.broker.connection import RedisConnectionError, RedisTimeoutError, open_server
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import eventually, real_deadline


@asynccontextmanager
async def silent_servers(count: int) -> AsyncIterator[tuple[str, list[trio.SocketListener]]]:
    """Open servers that accept no connection and say nothing; give their hosts for a URL."""
    async with AsyncExitStack() as stack:
        listeners = []
        for _ in range(count):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            listeners.append(await stack.enter_async_context(listener))
        ports = [listener.socket.getsockname()[1] for listener in listeners]
        yield ",".join(f"127.0.0.1:{port}" for port in ports), listeners


@pytest.mark.parametrize("scheme", ["redis+sentinel://{}/main", "redis+cluster://{}"])
async def test_one_deadline_holds_for_all_of_connecting(
    scheme: str, mock_clock: trio.testing.MockClock
) -> None:
    """Three silent servers together get the time that is given for one, threads included."""
    timed_out = trio.Event()
    async with real_deadline(), silent_servers(3) as (hosts, _), trio.open_nursery() as nursery:

        async def connect() -> None:
            with pytest.raises(RedisConnectionError):
                async with open_connection(
                    scheme.format(hosts), timeout_seconds=600, client_name="streamer-test"
                ):
                    raise AssertionError
            timed_out.set()

        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(600)
        while not timed_out.is_set() and trio.current_time() < 610:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.1)
        assert timed_out.is_set()


async def test_a_silent_sentinel_leaves_time_for_the_others(redis_server: RedisServer) -> None:
    """The deadline is shared out, so that a sentinel that answers is still asked."""
    # A plain Redis answers SENTINEL with an error, which shows that it was asked.
    async with real_deadline(), silent_servers(2) as (hosts, _):
        url = f"redis+sentinel://{hosts},127.0.0.1:{redis_server.port}/main"
        with pytest.raises(RedisConnectionError, match="unknown command"):
            async with open_server(url, timeout_seconds=2, client_name="streamer-test"):
                raise AssertionError


async def test_a_thread_that_is_late_is_not_waited_for_and_closes_its_socket(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    """Name resolution cannot be interrupted; the connection that follows it is closed."""
    resolving, resolved, closed = threading.Event(), threading.Event(), threading.Event()
    resolve = socket.getaddrinfo

    def resolve_late(*arguments: Any, **options: Any) -> Any:
        resolving.set()
        resolved.wait(60)
        return resolve(*arguments, **options)

    class WatchedHandover(Handover):
        def give(self, sock: socket.socket) -> None:
            super().give(sock)
            assert sock.fileno() == -1
            closed.set()

    monkeypatch.setattr("socket.getaddrinfo", resolve_late)
    monkeypatch.setattr("streamer.broker.connection.Handover", WatchedHandover)
    url = f"redis://localhost:{redis_server.port}"
    async with real_deadline(), trio.open_nursery() as nursery:

        async def connect() -> None:
            with pytest.raises(RedisTimeoutError):
                async with open_server(url, timeout_seconds=60, client_name="streamer-test"):
                    raise AssertionError

        nursery.start_soon(connect)
        await eventually(resolving.is_set)
        mock_clock.jump(60)
    async with real_deadline():
        resolved.set()
        await eventually(closed.is_set)


def test_the_socket_of_redis_py_is_taken_over_whole(redis_server: RedisServer) -> None:
    """redis-py keeps its socket as `_sock`, and closes nothing that was taken from there."""
    connector = BlockingConnector(redis_server.url, timeout_seconds=5, client_name="streamer-test")
    handover = Handover()
    connector.connect(handover)
    del connector
    gc.collect()
    (taken,) = handover.take()
    with taken as sock:
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b"+PONG\r\n"


@pytest.mark.parametrize("abandoned_first", [False, True])
def test_a_socket_that_nobody_takes_is_closed(*, abandoned_first: bool) -> None:
    """It is closed whether the task stops waiting before or after the socket comes."""
    ours, theirs = socket.socketpair()
    with theirs:
        handover = Handover()
        if abandoned_first:
            handover.abandon()
        handover.give(ours)
        handover.abandon()
        assert ours.fileno() == -1


@pytest.mark.parametrize(
    "reply",
    [
        b"$-1\r\n",
        b":1\r\n",
        b"*0\r\n",
        b"*2\r\n$2\r\nip\r\n$-1\r\n",
        b"$3\r\nabc\r\n",
        b"*1\r\n:1\r\n",
    ],
)
@pytest.mark.parametrize("scheme", ["redis+sentinel://{}/main", "redis+cluster://{}", "redis://{}"])
async def test_a_strange_reply_while_connecting_is_a_refused_connection(
    scheme: str, reply: bytes
) -> None:
    """Whatever a server answers to the handshake or to questions, the error says so."""
    async with real_deadline(), silent_servers(1) as (hosts, (listener,)):

        async def answer(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                async for _ in stream:
                    await stream.send_all(b"+OK\r\n" + reply * 2)

        async def connect() -> None:
            async with open_connection(
                scheme.format(hosts), timeout_seconds=1, client_name="streamer-test"
            ) as connection:
                # A handshake with one answer succeeds: the next one is what is strange.
                await connection.receive()
                raise RedisConnectionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [listener])
            with pytest.raises(RedisConnectionError):
                await connect()
            nursery.cancel_scope.cancel()
