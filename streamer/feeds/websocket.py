"""Stay connected to a WebSocket feed that is not streamer's own, such as an exchange's."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn, Protocol

import attrs
import trio

from streamer.backoff import Backoff
from streamer.client.dial import Dialer
from streamer.client.endings import ABNORMAL, Ending
from streamer.client.tokens import TokenSource
from streamer.client.websocket import WebSocket, WebSocketClosedError
from streamer.nursery import open_background_nursery
from streamer.urls import redact

DEFAULT_HEARTBEAT_SECONDS: Final = 20.0
"""Exchanges close a connection that is silent for one or two minutes."""

_MAX_MESSAGE_BYTES: Final = 16 * 2**20
"""A snapshot of a whole order book takes some megabytes at most."""

_CONNECT_TIMEOUT_SECONDS: Final = 10.0
_CLOSE_TIMEOUT_SECONDS: Final = 2.0
ANSWER_TIMEOUT_SECONDS: Final = 10.0
"""How long a feed may take to show that it is alive, and to answer an HTTP request."""


class FeedConnectError(Exception):
    """A feed cannot be connected to, from the start; the text names its URL."""


@attrs.frozen(kw_only=True)
class FeedSource:
    """A feed, and what it expects of its clients."""

    url: str
    subscribe: Sequence[str] = ()
    """Texts that are sent after each connect, in this order."""
    heartbeat: str | None = None
    """The text that is sent as a heartbeat; None: a WebSocket ping."""
    heartbeat_seconds: float = DEFAULT_HEARTBEAT_SECONDS
    fetch: Sequence[str] = ()
    """HTTP URLs that are requested once after each connect, when the first message has arrived.
    Their answers count as messages, such as the snapshot that a stream of changes needs."""


class FeedConsumer(Protocol):
    """The receiver of a feed's messages."""

    def connected(self, connection: int) -> None:
        """Take note of a new connection; the first one is 1."""

    async def take(self, message: str | bytes, received_ns: int) -> None:
        """Take a message, text or binary, with its receive time in ns since the Unix epoch.

        While this waits, nothing more is read.
        """


class FeedReader:
    """Reads one feed for ever, and reconnects with backoff and full jitter."""

    def __init__(
        self,
        source: FeedSource,
        consumer: FeedConsumer,
        *,
        log: Any,
        ssl_context: ssl.SSLContext | None = None,
        backoff: Backoff | None = None,
        answer_timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
    ) -> None:
        """`log` is a structlog logger. With `ssl_context`, wss and https use it."""
        self._source = source
        self._consumer = consumer
        self._log = log.bind(url=redact(source.url))
        self._ssl_context = ssl_context
        self._backoff = backoff or Backoff()
        self._answer_timeout_seconds = answer_timeout_seconds
        self._progress = 0
        """Counts the messages that have come, and those that have been taken."""
        self._taking = 0
        """Messages that the consumer is taking now."""
        self._conversation = trio.CancelScope()
        self._ending: Ending | None = None
        """Why this side ends the connection."""
        self.connections = 0
        """Connections made so far."""

    async def run(self) -> NoReturn:
        """Read until cancelled.

        Raises FeedConnectError if the first attempt to connect fails, and the errors of the
        consumer. Once there has been a connection, every failure is followed by another attempt:
        an exchange may refuse handshakes for as long as its maintenance takes.
        """
        dialer = Dialer(
            url=self._source.url,
            tokens=TokenSource(None),
            ssl_context=self._ssl_context,
            compress=False,
            max_message_bytes=_MAX_MESSAGE_BYTES,
            connect_timeout_seconds=_CONNECT_TIMEOUT_SECONDS,
            close_timeout_seconds=_CLOSE_TIMEOUT_SECONDS,
        )
        while True:
            began_at = trio.current_time()
            ending = await dialer.call(self._converse)
            if not self.connections:
                raise FeedConnectError(
                    f"cannot connect to {redact(self._source.url)}: {ending.reason}"
                )
            if trio.current_time() - began_at > self._backoff.max_seconds:
                self._backoff.reset()
            delay_seconds = self._backoff.next_delay()
            self._log.warning(
                "feed_lost", reason=str(ending), retry_after_seconds=round(delay_seconds, 3)
            )
            await trio.sleep(delay_seconds)

    def reconnect(self, reason: str) -> None:
        """End the connection and make a new one: what was received is of no further use."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self._ending is None:
            self._ending = Ending(ABNORMAL, reason)
        self._conversation.cancel()

    async def _converse(self, socket: WebSocket) -> Ending:
        self._ending = None
        self.connections += 1
        self._log.info("feed_connected", connection=self.connections)
        self._consumer.connected(self.connections)
        first_message = trio.Event()
        with trio.CancelScope() as self._conversation:
            try:
                for text in self._source.subscribe:
                    await socket.send_message(text)
                async with open_background_nursery() as nursery:
                    nursery.start_soon(self._keep_alive, socket)
                    for url in self._source.fetch:
                        nursery.start_soon(self._fetch, url, first_message)
                    while True:
                        message = await socket.get_message()
                        await self._take(message)
                        first_message.set()
            except WebSocketClosedError as closed:
                return Ending.of(closed)
        return self._left()

    def _left(self) -> Ending:
        return self._ending or Ending(ABNORMAL, "left")

    async def _take(self, message: str | bytes) -> None:
        received_ns = time.time_ns()
        self._progress += 1
        self._taking += 1
        try:
            await self._consumer.take(message, received_ns)
        finally:
            self._taking -= 1
            self._progress += 1

    async def _keep_alive(self, socket: WebSocket) -> None:
        """Show the feed that this end is alive, and end the connection if the feed is mute.

        While the consumer has no room, nothing is read: what the feed says then is not known.
        """
        while True:
            await trio.sleep(self._source.heartbeat_seconds)
            progress = self._progress
            answered = False
            with trio.move_on_after(self._answer_timeout_seconds):
                try:
                    if self._source.heartbeat is None:
                        await socket.ping()
                        answered = True
                    else:
                        await socket.send_message(self._source.heartbeat)
                        await trio.sleep_forever()
                except WebSocketClosedError:
                    return  # the reader of messages says why
            if not answered and not self._taking and self._progress == progress:
                self._end(f"mute for {self._answer_timeout_seconds:g} s after a heartbeat")

    async def _fetch(self, url: str, first_message: trio.Event) -> None:
        import httpx2  # noqa: PLC0415 - it takes longer than the other commands need to start

        await first_message.wait()
        backoff = Backoff()
        verify = True if self._ssl_context is None else self._ssl_context
        async with httpx2.AsyncClient(timeout=ANSWER_TIMEOUT_SECONDS, verify=verify) as client:
            while True:
                try:
                    response = await client.get(url)
                    response.raise_for_status()
                except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                    self._log.warning("fetch_failed", fetch=redact(url), error=str(error))
                    await trio.sleep(backoff.next_delay())
                else:
                    await self._take(response.content)
                    return
