"""Requests to Redis, pipelined over a connection that is kept while it is good.

The requests of all tasks that wait share a round trip. When thousands of clients return together,
each round takes some turns of a busy event loop, 50 ms or more: with one request in each, they
would wait for minutes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NoReturn

import attrs
import trio

from streamer.backoff import Backoff
from streamer.broker.connect import (
    INCOMPLETE,
    Command,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    RequestConnection,
    open_connection,
)
from streamer.broker.replies import is_read_only

_CLOSE_SECONDS: Final = 1.0
"""A generous bound: closing a socket does not wait."""

_READ_ONLY_SECONDS: Final = 3.0
"""The least time between two connections that are given up since they are to a replica."""

_COMMANDS_PER_SEND: Final = 100
"""Few enough that Redis never waits for its replies to be read while commands are still sent."""


@attrs.define(eq=False)
class _Request:
    """The commands of one caller, and the replies or the error for it."""

    commands: Sequence[Command]
    settled: trio.Event = attrs.field(factory=trio.Event)
    replies: list[Any] = attrs.field(factory=list)
    error: RedisConnectionError | None = None


class RedisClient:
    """A connection for requests, opened when first needed and again after it failed.

    `run` uses it, for the requests of all callers that wait. A caller bounds its own wait with a
    cancel scope; what it has asked may still be carried out. When a round fails, all who wait fail
    with it, and so do new ones until a delay (exponential backoff, full jitter) is over: with a
    silent Redis, callers do not wait for a timeout each, one after another.
    """

    def __init__(
        self,
        url: str,
        *,
        client_name: str,
        timeout_seconds: float = 5.0,
        backoff_seconds: float = 0.1,
        max_backoff_seconds: float = 3.0,
    ) -> None:
        """`timeout_seconds` bounds connecting, and each time that Redis is silent when asked."""
        self._url = url
        self._client_name = client_name
        self._timeout_seconds = timeout_seconds
        self._backoff = Backoff(backoff_seconds, max_backoff_seconds)
        self._waiting: OrderedDict[_Request, None] = OrderedDict()
        """In the order in which they are sent. Thousands may be given up together, wherever they
        are."""
        self._work = trio.Event()
        self._connection: RequestConnection | None = None
        self._opened: AbstractAsyncContextManager[RequestConnection]
        self._is_outdated = False
        self._read_only_until = -math.inf
        self._last_error = ""
        self._closed_until = -math.inf

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return their replies in order, a `RedisReplyError` as such.

        They are sent again over a new connection if the old one turns out to be dead, so they must
        be commands that may be carried out twice. Raises RedisConnectionError.
        """
        if trio.current_time() < self._closed_until:
            await trio.lowlevel.checkpoint()
            raise RedisConnectionError(self._last_error)
        request = _Request(commands)
        self._waiting[request] = None
        self._work.set()
        try:
            await request.settled.wait()
        finally:
            self._waiting.pop(request, None)
        if request.error is not None:
            # One for each caller: they add to its traceback.
            raise type(request.error)(str(request.error))
        return request.replies

    def renew(self) -> None:
        """Send what has not been sent over a new connection.

        The server of the present one may still answer after another has taken its place: behind a
        name or a virtual address, or cut off from the sentinels.
        """
        self._is_outdated = True

    async def _serve_round(self) -> None:
        """Carry out the requests of those that wait, as many as go out in one send."""
        requests: list[_Request] = []
        commands: list[Command] = []
        while self._waiting:
            request = next(iter(self._waiting))
            if requests and len(commands) + len(request.commands) > _COMMANDS_PER_SEND:
                break
            del self._waiting[request]
            requests.append(request)
            commands += request.commands
        if self._is_outdated:
            self._is_outdated = False
            await self._close()
        try:
            replies = await self._execute(commands)
        except RedisConnectionError as error:
            self._last_error = str(error)
            self._closed_until = trio.current_time() + self._backoff.next_delay()
            requests += self._waiting
            self._waiting.clear()
            for request in requests:
                request.error = error
                request.settled.set()
            return
        self._backoff.reset()
        self._leave_replica(replies)
        start = 0
        for request in requests:
            request.replies = replies[start : start + len(request.commands)]
            request.settled.set()
            start += len(request.commands)

    def _leave_replica(self, replies: Sequence[Any]) -> None:
        """Renew the connection if Redis refuses to write as a replica.

        A master that is demoted may keep its connections, while the name in the URL has become that
        of another; or the URL is that of a replica, which does not change.
        """
        now = trio.current_time()
        if now >= self._read_only_until and any(
            isinstance(reply, RedisReplyError) and is_read_only(reply) for reply in replies
        ):
            self._read_only_until = now + _READ_ONLY_SECONDS
            self.renew()

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        if self._connection is not None:
            try:
                return await self._execute_once(commands)
            except RedisTimeoutError:
                raise  # silent, not dead: a new connection would only wait as long again
            except RedisConnectionError:
                pass  # it died while it was idle
        return await self._execute_once(commands)

    async def _execute_once(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        try:
            for start in range(0, len(commands), _COMMANDS_PER_SEND):
                replies += await self._exchange(commands[start : start + _COMMANDS_PER_SEND])
        except BaseException:
            # After a cancellation or failure half way, the next request would get the replies to
            # this one.
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._close()
            raise
        return replies

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        with trio.move_on_after(self._timeout_seconds) as patience:
            connection = self._connection or await self._connect()
            await connection.send(commands)
            replies: list[Any] = []
            while len(replies) < len(commands):
                reply = connection.reader.gets()
                if reply is INCOMPLETE:
                    await connection.receive()
                    # Long histories over a slow network take long: wait as long as bytes arrive.
                    patience.deadline = trio.current_time() + self._timeout_seconds
                else:
                    replies.append(reply)
            return replies
        raise RedisTimeoutError("no reply from Redis")

    async def _connect(self) -> RequestConnection:
        self._opened = open_connection(
            self._url, timeout_seconds=self._timeout_seconds, client_name=self._client_name
        )
        self._connection = await self._opened.__aenter__()
        return self._connection

    async def _close(self) -> None:
        if self._connection is not None:
            self._connection = None
            await self._opened.__aexit__(None, None, None)

    async def run(self) -> NoReturn:
        """Carry out requests; must run as long as the instance is used.

        Cancelled, it closes the connection.
        """
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self._waiting:
                    await self._serve_round()
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._close()
