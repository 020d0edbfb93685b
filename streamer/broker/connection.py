"""Connections to one Redis server that Trio waits on.

redis-py has no Trio client, but its blocking one supports TLS, AUTH, ACL users and unix sockets. So
it connects, in a worker thread (`streamer.broker.blocking`), and hands over the socket; from then
on Trio waits and hiredis parses. Reading with redis-py's own `get_message` would cost fourteen
times the CPU per message.
"""

import abc
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeAlias

import hiredis
import trio

from streamer.broker.blocking import BlockingConnector, Handover, check_server_url
from streamer.broker.errors import (
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    unexpected_reply,
)

__all__ = [
    "INCOMPLETE",
    "RECEIVE_BYTES",
    "Command",
    "Connection",
    "RedisConnectionError",
    "RedisReplyError",
    "RedisTimeoutError",
    "Replies",
    "RequestConnection",
    "SocketConnection",
    "Word",
    "check_server_url",
    "new_reader",
    "open_server",
    "pack",
    "unexpected_reply",
]

RECEIVE_BYTES: Final = 65536
"""Most bytes taken from a socket at once, which bounds how long one batch of messages holds up the
event loop."""

Word: TypeAlias = str | bytes | float
Command: TypeAlias = tuple[Word, ...]
"""A command's name and arguments, each as one word."""

INCOMPLETE: Final = object()
"""Returned by `Connection.reader.gets` when it has no whole reply left."""


class Replies(Protocol):
    """Replies as they come in."""

    def gets(self) -> Any:
        """Return the next one, a `RedisReplyError` as such; `INCOMPLETE` if none is complete."""


class RequestConnection(Protocol):
    """A connection for requests: to one server, or to all of a Cluster as if they were one.

    One task may receive while another sends.
    """

    @property
    def reader(self) -> Replies:
        """The replies, in the order of the commands."""

    async def receive(self) -> int:
        """Wait for bytes of replies; return how many. Raises RedisConnectionError."""

    async def send(self, commands: Iterable[Command]) -> None:
        """Write commands. Raises RedisConnectionError; cancelled, it leaves half of them."""


def new_reader() -> hiredis.Reader:
    """Return a parser of RESP2 replies: bytes go in by `feed`, replies come out by `gets`."""
    return hiredis.Reader(
        protocolError=RedisConnectionError,
        replyError=RedisReplyError,
        notEnoughData=INCOMPLETE,
    )


class SocketConnection(abc.ABC):
    """An authenticated connection to Redis, speaking RESP2, whatever event loop waits for it.

    One task may receive while another sends; a second one of either is an error.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._drained = False
        """Whether the last read emptied the socket."""
        self.reader = new_reader()

    @abc.abstractmethod
    async def _wait_readable(self) -> None: ...

    @abc.abstractmethod
    async def _wait_writable(self) -> None: ...

    @abc.abstractmethod
    async def _give_turn(self) -> None:
        """Let other tasks run."""

    async def receive(self) -> int:
        """Wait for bytes and feed them to `reader`; return how many.

        Raises `RedisConnectionError` when the connection is over.
        """
        # After a read that emptied the socket, another one at once would only fail. Otherwise read
        # first: bytes that TLS has already decrypted never make the socket readable. A read that
        # succeeds at once is still a checkpoint, or a Redis that is never silent would starve every
        # other task.
        waited = self._drained
        if self._drained:
            await self._wait_readable()
        data = None
        while data is None:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._wait_readable()
                waited = True
            except ssl.SSLWantWriteError:  # pragma: no cover - renegotiation, gone with TLS 1.3
                await self._wait_writable()
            except OSError as error:
                raise RedisConnectionError(f"connection lost: {error}") from error
        if not data:
            raise RedisConnectionError("connection closed by Redis")
        self._drained = len(data) < RECEIVE_BYTES and not isinstance(self._sock, ssl.SSLSocket)
        self.reader.feed(data)
        if not waited:
            await self._give_turn()
        return len(data)

    async def send(self, commands: Iterable[Command]) -> None:
        """Write `commands`; their replies come through `receive`.

        Raises `RedisConnectionError` when the connection is over. Cancelled in the middle, it
        leaves half a command on the wire: close the connection then.
        """
        rest = memoryview(pack(commands))
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._wait_writable()
            except ssl.SSLWantReadError:  # pragma: no cover - renegotiation, gone with TLS 1.3
                await self._wait_readable()
            except OSError as error:
                raise RedisConnectionError(f"connection lost: {error}") from error

    def close(self) -> None:
        """Close the socket; no task may be using the connection."""
        self._sock.close()


class Connection(SocketConnection):
    """A connection that Trio waits for; made by `open_server`.

    A second task that receives or sends gets `trio.BusyResourceError`.
    """

    async def _wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)

    async def _wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._sock)

    async def _give_turn(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send(self, commands: Iterable[Command]) -> None:
        """See `SocketConnection.send`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await super().send(commands)

    async def execute(self, *command: str | bytes | float) -> Any:
        """Send one command and return its reply, strings as bytes.

        Raises `RedisReplyError` when Redis answers with an error, `RedisConnectionError` when the
        connection is over. Not for a connection that has subscribed.
        """
        await self.send([command])
        while (reply := self.reader.gets()) is INCOMPLETE:
            await self.receive()
        if isinstance(reply, RedisReplyError):
            raise reply
        return reply


@asynccontextmanager
async def open_server(
    url: str, *, timeout_seconds: float, client_name: str
) -> AsyncIterator[Connection]:
    """Connect to the Redis at `url` and close the connection at the end.

    `url` is redis://, rediss:// or unix://, or redis+sentinel:// or rediss+sentinel:// for the
    master that the sentinels name at that moment. `timeout_seconds` bounds all of connecting: name
    resolution, the sentinels, TCP, TLS and AUTH together. `client_name` is shown by CLIENT LIST.

    Raises `RedisTimeoutError` when Redis is silent, `RedisConnectionError` when it cannot be
    reached or refuses the connection, `ValueError` for a URL that is not one of Redis.
    """
    connector = BlockingConnector(url, timeout_seconds=timeout_seconds, client_name=client_name)
    handover = Handover()
    try:
        with trio.fail_after(timeout_seconds):
            # Abandoned on cancel: name resolution cannot be interrupted, and its result is not
            # needed. A thread that is too late closes its socket.
            await trio.to_thread.run_sync(connector.connect, handover, abandon_on_cancel=True)
        (sock,) = handover.take()
    except trio.TooSlowError:
        raise RedisTimeoutError(f"no answer from Redis within {timeout_seconds:g} s") from None
    finally:
        handover.abandon()
    connection = Connection(sock)
    try:
        yield connection
    finally:
        connection.close()


def pack(commands: Iterable[Command]) -> bytes:
    """Return the bytes of commands."""
    # The stub wants one string.
    return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]
