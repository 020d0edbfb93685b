"""Connections to one Redis server that Trio waits on.

redis-py has no Trio client, but its blocking one knows how to reach a Redis: URLs, TLS, AUTH and
ACL users, unix sockets, Sentinel. So it connects, in a worker thread, and hands over the socket;
from then on Trio waits and hiredis parses. The alternative, draining redis-py's own `get_message`,
costs fourteen times the CPU per message.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeAlias, cast

import hiredis
import redis.connection
import redis.exceptions
import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamer.broker.sentinel import MasterFinder, SentinelURL
from streamer.broker.urls import SENTINEL_SCHEMES, has_scheme

RECEIVE_BYTES: Final = 65536
"""Most bytes taken from a socket at once: what bounds how long one batch of messages can hold up
the event loop."""

Word: TypeAlias = str | bytes | float
Command: TypeAlias = tuple[Word, ...]
"""A command's name and arguments, each as one word."""

INCOMPLETE: Final = object()
"""What `Connection.reader.gets` returns when it has no whole reply left."""


class RedisConnectionError(Exception):
    """Redis could not be reached, or the connection to it was lost."""


class RedisTimeoutError(RedisConnectionError):
    """Redis accepted the connection, or not even that, and then said nothing."""


class RedisReplyError(Exception):
    """Redis answered a command with an error; the connection is intact."""


class Replies(Protocol):
    """Replies as they come in."""

    def gets(self) -> Any:
        """The next one, a `RedisReplyError` as such; `INCOMPLETE` where more has to be received."""


class RequestConnection(Protocol):
    """What can be asked: one server, or the servers of a Cluster as if they were one.

    One task may receive while another sends.
    """

    @property
    def reader(self) -> Replies:
        """The replies, in the order of the commands."""

    async def receive(self) -> int:
        """Wait for bytes of replies; return how many. Raises RedisConnectionError."""

    async def send(self, commands: Iterable[Command]) -> None:
        """Write commands. Raises RedisConnectionError; cancelled, it leaves half of them."""


class Connection:
    """An authenticated connection to Redis, speaking RESP2.

    Made by `open_server`. One task may receive while another sends; a second one of either
    gets `trio.BusyResourceError`.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._drained = False
        """Whether the last read took all there was."""
        self.reader = hiredis.Reader(
            protocolError=RedisConnectionError,
            replyError=RedisReplyError,
            notEnoughData=INCOMPLETE,
        )

    async def receive(self) -> int:
        """Wait for bytes and feed them to `reader`; return how many.

        Raises `RedisConnectionError` when the connection is over.
        """
        # After a read that emptied the socket, to try again at once would only fail. Otherwise
        # receive first: bytes that TLS has already decrypted never make the socket readable. A read
        # that succeeds at once is still a checkpoint, or a Redis that never falls silent would
        # starve every other task.
        waited = self._drained
        if self._drained:
            await trio.lowlevel.wait_readable(self._sock)
        data = None
        while data is None:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                await trio.lowlevel.wait_readable(self._sock)
                waited = True
            except ssl.SSLWantWriteError:  # pragma: no cover - renegotiation, gone with TLS 1.3
                await trio.lowlevel.wait_writable(self._sock)
            except OSError as error:
                raise RedisConnectionError(f"connection lost: {error}") from error
        if not data:
            raise RedisConnectionError("connection closed by Redis")
        self._drained = len(data) < RECEIVE_BYTES and not isinstance(self._sock, ssl.SSLSocket)
        self.reader.feed(data)
        if not waited:
            await trio.lowlevel.checkpoint()
        return len(data)

    async def send(self, commands: Iterable[Command]) -> None:
        """Write `commands`; their replies come through `receive`.

        Raises `RedisConnectionError` when the connection is over. Cancelled in the middle, it
        leaves half a command on the wire: close the connection then.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(b"".join(map(_pack, commands)))
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self._sock)
            except ssl.SSLWantReadError:  # pragma: no cover - renegotiation, gone with TLS 1.3
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as error:
                raise RedisConnectionError(f"connection lost: {error}") from error

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

    def close(self) -> None:
        """Close the socket; no task may be using the connection."""
        self._sock.close()


def check_server_url(url: str) -> None:
    """Raise `ValueError` if `url` is not one that `open_server` understands."""
    _blocking_connection(url, timeout_seconds=1, client_name="")


@asynccontextmanager
async def open_server(
    url: str, *, timeout_seconds: float, client_name: str
) -> AsyncIterator[Connection]:
    """Connect to the Redis at `url` and close the connection at the end.

    `url` is redis://, rediss:// or unix://, or redis+sentinel:// or rediss+sentinel:// for the
    master that the sentinels name at that moment. `timeout_seconds` bounds each step (connect, TLS
    handshake, each answer, of each sentinel too), and so how long a cancellation may have to wait
    for the worker thread. `client_name` is what CLIENT LIST shows.

    Raises `RedisTimeoutError` when Redis is silent, `RedisConnectionError` when it cannot be
    reached or refuses us, `ValueError` for a URL that is none.
    """
    blocking, finder = _blocking_connection(
        url, timeout_seconds=timeout_seconds, client_name=client_name
    )
    # Not abandoned on cancel: the thread ends by its own timeouts, and a socket that it returns
    # too late is still closed here.
    connection = Connection(await trio.to_thread.run_sync(_connect, blocking, finder))
    try:
        yield connection
    finally:
        connection.close()


def _pack(command: Command) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type] # stub wants one string
    return packed


def _blocking_connection(
    url: str, *, timeout_seconds: float, client_name: str
) -> tuple[redis.connection.Connection, MasterFinder | None]:
    try:
        sentinels = SentinelURL.parse(url) if has_scheme(url, SENTINEL_SCHEMES) else None
        server_url = url if sentinels is None else sentinels.master_url
        options: dict[str, Any] = redis.connection.parse_url(server_url)  # type: ignore[no-untyped-call]
        options.setdefault("socket_timeout", timeout_seconds)
        options.setdefault("socket_connect_timeout", timeout_seconds)
        options.setdefault("client_name", client_name)
        options |= {
            # RESP3 wraps each message in a push type of its own: a fifth more CPU per message.
            "protocol": 2,
            # Reconnecting is the caller's: redis-py would sleep in the worker thread.
            "retry": Retry(NoBackoff(), 0),
            # No CLIENT SETINFO: two more round trips that older servers answer with an error.
            "driver_info": None,
            # One byte at a time, redis-py cannot read past the last answer of its handshake:
            # nothing is left behind in its parser when the socket changes hands.
            "socket_read_size": 1,
        }
        finder = None if sentinels is None else MasterFinder(sentinels, options)
        connection_class = options.pop("connection_class", redis.connection.Connection)
        connection: redis.connection.Connection = connection_class(**options)
    except (TypeError, ValueError, redis.exceptions.RedisError):
        # The cause is dropped: what urllib quotes in its messages can be part of the password.
        raise ValueError(
            "not a Redis URL: expected redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://…,"
            " unix://PATH, redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTERNAME[/DB] or"
            " redis+cluster://[USER:PASSWORD@]HOST[:PORT],…, and after ? only options that redis-py"
            " knows"
        ) from None
    return connection, finder


def _connect(blocking: redis.connection.Connection, finder: MasterFinder | None) -> socket.socket:
    try:
        if finder is not None:
            blocking.host, blocking.port = finder.find()
        blocking.connect()  # type: ignore[no-untyped-call]
        if finder is not None:
            finder.check_role(blocking)
    except (TimeoutError, redis.exceptions.TimeoutError) as error:
        raise RedisTimeoutError(f"no answer from Redis: {error}") from error
    except (OSError, UnicodeError, redis.exceptions.RedisError) as error:
        raise RedisConnectionError(str(error)) from error
    # There is no public way to take the socket over. Its place must be empty afterwards:
    # redis-py's connection shuts down what it holds when it is collected.
    sock = cast("socket.socket", blocking._sock)  # noqa: SLF001
    blocking._sock = None  # noqa: SLF001
    return sock
