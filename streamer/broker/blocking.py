"""Connecting, which blocks and runs in a worker thread: redis-py up to the end of its handshake."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any, cast

import redis.connection
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamer.broker.errors import RedisConnectionError, RedisTimeoutError
from streamer.broker.sentinel import MasterFinder, SentinelURL
from streamer.broker.urls import SENTINEL_SCHEMES, check_database, check_options, has_scheme


def check_server_url(url: str) -> None:
    """Raise `ValueError` with the reason if `url` is not one that `open_server` understands."""
    BlockingConnector(url, timeout_seconds=1, client_name="")


class Handover:
    """The sockets that a worker thread connects for a task that may have stopped waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._abandoned = False

    def give(self, sock: socket.socket) -> None:
        """Hand over a connected socket; close it if no task waits for it."""
        with self._lock:
            if not self._abandoned:
                self._sockets.append(sock)
                return
        sock.close()

    def take(self) -> list[socket.socket]:
        """Return the sockets, in the order given; they belong to the caller from now on."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        return sockets

    def abandon(self) -> None:
        """Close the sockets, now or when they are handed over, unless they have been taken."""
        with self._lock:
            self._abandoned = True
        for sock in self.take():
            sock.close()


class BlockingConnector:
    """Connects once to the server of a URL, within a deadline.

    Raises `ValueError` for a URL that does not name one server or has an option that is not
    honoured; its message repeats nothing of the password.
    """

    def __init__(self, url: str, *, timeout_seconds: float, client_name: str) -> None:
        self._deadline = time.monotonic() + timeout_seconds
        try:
            sentinels = SentinelURL.parse(url) if has_scheme(url, SENTINEL_SCHEMES) else None
            server_url = url if sentinels is None else sentinels.master_url
            _ = redis.connection.parse_url(server_url.partition("?")[0])  # type: ignore[no-untyped-call]
            check_database(url)
        except ValueError:
            # The cause is dropped: urllib's messages may quote parts of the password.
            raise ValueError(
                "not a Redis URL: expected redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://…,"
                " unix://PATH, redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTERNAME[/DB] or"
                " redis+cluster://[USER:PASSWORD@]HOST[:PORT],…"
            ) from None
        check_options(url)
        options: dict[str, Any] = redis.connection.parse_url(server_url)  # type: ignore[no-untyped-call]
        options.setdefault("socket_timeout", timeout_seconds)
        options.setdefault("socket_connect_timeout", timeout_seconds)
        options.setdefault("client_name", client_name)
        options |= {
            # RESP3 wraps each message in a push type of its own: a fifth more CPU per message.
            "protocol": 2,
            # The caller reconnects: redis-py would sleep in the worker thread.
            "retry": Retry(NoBackoff(), 0),
            # No CLIENT SETINFO: two more round trips that older servers answer with an error.
            "driver_info": None,
            # One byte at a time, redis-py cannot read past the last answer of its handshake:
            # nothing is left behind in its parser when the socket changes hands.
            "socket_read_size": 1,
        }
        self._step_seconds: float = options["socket_timeout"]
        self._connect_seconds: float = options["socket_connect_timeout"]
        self._finder = None if sentinels is None else MasterFinder(sentinels, options)
        connection_class = options.pop("connection_class", redis.connection.Connection)
        self._blocking: redis.connection.Connection = connection_class(**options)

    def connect(self, handover: Handover) -> None:
        """Connect and give the socket to `handover`.

        No step takes longer than the time left until the deadline, so that an abandoned thread ends
        soon; only name resolution has its own timeout. Raises RedisTimeoutError and
        RedisConnectionError.
        """
        blocking = self._blocking
        try:
            if self._finder is not None:
                blocking.host, blocking.port = self._finder.find(self._deadline)
            left_seconds = max(0.001, self._deadline - time.monotonic())
            blocking.socket_timeout = min(self._step_seconds, left_seconds)
            blocking.socket_connect_timeout = min(self._connect_seconds, left_seconds)
            blocking.connect()  # type: ignore[no-untyped-call]
            if self._finder is not None:
                self._finder.check_role(blocking)
        except (TimeoutError, redis.exceptions.TimeoutError) as error:
            self._disconnect()
            raise RedisTimeoutError(f"no answer from Redis: {error}") from error
        except (OSError, UnicodeError, redis.exceptions.RedisError) as error:
            self._disconnect()
            raise RedisConnectionError(str(error)) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # redis-py does not check the shape of a reply.
            self._disconnect()
            raise RedisConnectionError(f"unexpected reply while connecting: {error!r}") from error
        # There is no public way to take the socket over. Its place must be empty afterwards:
        # redis-py's connection shuts down what it holds when it is collected.
        sock = cast("socket.socket", blocking._sock)  # noqa: SLF001
        blocking._sock = None  # noqa: SLF001
        handover.give(sock)

    def _disconnect(self) -> None:
        self._blocking.disconnect()  # type: ignore[no-untyped-call]
