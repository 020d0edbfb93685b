"""Requests to Redis, pipelined over a connection that is kept while it is good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NoReturn

import trio

from streamer.backoff import Backoff
from streamer.broker.connect import (
    INCOMPLETE,
    Command,
    RedisConnectionError,
    RedisTimeoutError,
    RequestConnection,
    open_connection,
)

_CLOSE_SECONDS: Final = 1.0
"""A generous bound: closing a socket does not wait."""

_COMMANDS_PER_SEND: Final = 100
"""Few enough that Redis never waits for its replies to be read while commands are still sent."""


class RedisClient:
    """A connection for requests, opened when first needed and again after it failed.

    One caller at a time uses it; others wait in line. A caller bounds its own wait with a cancel
    scope. When a request of one caller fails, those in line fail at once, and so do new ones until
    a delay (exponential backoff, full jitter) is over: with a silent Redis, callers do not wait for
    a timeout each, one after another.
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
        self._lock = trio.Lock()
        self._connection: RequestConnection | None = None
        self._opened: AbstractAsyncContextManager[RequestConnection]
        self._failures = 0
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
        failures = self._failures
        async with self._lock:
            if self._failures != failures:
                raise RedisConnectionError(self._last_error)
            try:
                replies = await self._execute(commands)
            except RedisConnectionError as error:
                self._failures += 1
                self._last_error = str(error)
                self._closed_until = trio.current_time() + self._backoff.next_delay()
                raise
            self._backoff.reset()
            return replies

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
        """Close the connection when cancelled; must run as long as the instance is used."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._close()
