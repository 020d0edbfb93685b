"""The publisher for threads: for Django, Celery, scripts, and whatever else blocks.

    from streamer.publisher.sync import open_publisher

    with open_publisher("redis://127.0.0.1") as publisher:
        publisher.publish("stock:005930:price", {"type": "price_update", …})

No thread of its own: the caller writes, and waits for the answer, as with redis-py. The rules are
those of `streamer.publisher.core`, so the guarantees are the same as under Trio.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Unpack

from streamer.backoff import Backoff
from streamer.broker.connect import INCOMPLETE, RedisConnectionError
from streamer.broker.connect_blocking import BlockingRequestConnection, open_blocking
from streamer.publisher.core import (
    BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    Attempt,
    Call,
    PublisherArguments,
    PublisherCore,
    PublisherOptions,
    PublisherStatistics,
)
from streamer.publisher.destination import Payload
from streamer.publisher.receipts import PublishFailedError, Receipt

__all__ = ["Publisher", "PublisherOptions", "PublisherStatistics", "open_publisher"]


class Publisher:
    """Publishes over a connection of its own; made by `open_publisher`, safe for any thread.

    One thread uses the connection at a time, and the others wait for it. Publications of one thread
    to one topic stay in order. A process that was forked gets a connection, and an identity, of its
    own.
    """

    def __init__(self, url: str, options: PublisherOptions) -> None:
        """Raises ValueError for a URL that is not one of Redis."""
        self._url = url
        self._options = options
        self._by_process: dict[int, _ProcessPublisher] = {}
        """By process id; after a fork, that of the parent process until the first use."""
        self._own()

    def statistics(self) -> PublisherStatistics:
        """Return the state when no thread was publishing; `held` counts those that wait, too."""
        return self._own().statistics()

    def publish(self, channel: str, payload: Payload) -> Receipt:
        """Publish one data message and wait until Redis has it.

        `channel` is a topic's (`stock:005930:price`) or a user's (`alerts:u1`); `payload` is the
        JSON text, a dict or the model. Raises as `publish_many`.
        """
        (receipt,) = self.publish_many([(channel, payload)])
        return receipt

    def publish_many(self, publications: Iterable[tuple[str, Payload]]) -> list[Receipt]:
        """Publish (channel, payload) after (channel, payload); return the receipts in that order.

        While Redis is away, the caller waits, and they are sent when it is back, never twice.

        Raises `InvalidPublicationError`, before anything is sent, if one of them does not fit its
        channel or is too large. Raises `PublishFailedError` when Redis has acknowledged nothing for
        the hold time, or at once if it is away and threads hold the maximum number of publications
        already. Without positions it is also raised if the connection is lost before an answer: the
        publication may have been published, and is not sent again. Raises `PublishRefusedError` if
        Redis refuses some of them; the others are published. Raises ValueError once it is closed.
        """
        return self._own().publish_many(list(publications))

    def close(self) -> None:
        """Close the connection, once no thread uses it; what is published later is refused."""
        self._own().close()

    def _own(self) -> _ProcessPublisher:
        process_id = os.getpid()
        own = self._by_process.get(process_id)
        if own is None:
            # All threads of a new process may come here at once. They get what the first of them
            # has set, and no lock is needed, which another thread might hold during the fork.
            own = self._by_process.setdefault(
                process_id, _ProcessPublisher(self._url, self._options)
            )
            for other in self._by_process.keys() - {process_id}:
                self._by_process.pop(other, None)
        return own


class _ProcessPublisher:
    """The publisher of one process: its identity, its connection, and the locks of its threads."""

    def __init__(self, url: str, options: PublisherOptions) -> None:
        """Raises ValueError for a URL that is not one of Redis."""
        self._url = url
        self._options = options
        self._core = PublisherCore(self._url, self._options)
        self._lock = threading.Lock()
        """Held by the thread that uses the connection, and the core."""
        self._counting = threading.Lock()
        self._waiting = 0
        """Publications of the threads that wait for the connection, or use it."""
        self._is_away = False
        self._resources = ExitStack()
        self._connection: BlockingRequestConnection | None = None
        self._backoff = Backoff(BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
        self._closed = False

    def statistics(self) -> PublisherStatistics:
        """Return the state; see `Publisher.statistics`."""
        core = self._core.statistics()
        return PublisherStatistics(
            core.connected,
            max(core.held, self._waiting),
            core.acknowledged,
            core.connections,
            core.last_error,
        )

    def publish_many(self, publications: Sequence[tuple[str, Payload]]) -> list[Receipt]:
        """Publish; see `Publisher.publish_many`."""
        began_seconds = time.monotonic()
        self._enter(len(publications))
        try:
            with self._lock:
                if self._closed:
                    raise ValueError("the publisher is closed")
                checked = [self._core.check(channel, payload) for channel, payload in publications]
                call = self._core.begin(checked, began_seconds, _nothing)
                try:
                    while not call.is_settled:
                        self._advance(call)
                finally:
                    self._core.withdraw(call)
            return call.result()
        finally:
            self._leave(len(publications))

    def _enter(self, count: int) -> None:
        """Count publications that wait. Raises PublishFailedError if there are too many of them."""
        with self._counting:
            if self._is_away and self._waiting >= self._options.hold_messages:
                reason = f"{self._waiting} publications are held already; {self._core.last_error}"
                raise PublishFailedError(reason, [None] * count)
            self._waiting += count

    def _leave(self, count: int) -> None:
        with self._counting:
            self._waiting -= count

    def _advance(self, call: Call) -> None:
        """Send and receive until the call is settled, or the connection is lost.

        Raises PublishFailedError once the call has waited for the hold time.
        """
        core = self._core
        attempt = core.attempt()
        try:
            if self._connection is not None and self._connection.is_over:
                self._lose("connection closed by Redis", attempt)
            if self._connection is None:
                self._connect(call)
            connection = self._connection
            assert connection is not None
            gets = connection.reader.gets
            while not call.is_settled:
                if commands := core.next_commands():
                    connection.send(commands)
                connection.receive()
                while (reply := gets()) is not INCOMPLETE:
                    core.settle(reply, time.monotonic())
        except RedisConnectionError as error:
            self._lose(str(error), attempt)
            self._pause(call)
        except BaseException:
            # A half-read answer, for one: the connection cannot be used again.
            self._lose("the thread that used the connection was interrupted", attempt)
            raise

    def _connect(self, call: Call) -> None:
        options = self._options
        left_seconds = max(0.001, self._core.gives_up_at(call) - time.monotonic())
        self._connection = self._resources.enter_context(
            open_blocking(
                self._url,
                timeout_seconds=min(options.timeout_seconds, left_seconds),
                # The connection serves later calls, too, however little time this one has left.
                answer_seconds=min(options.timeout_seconds, options.hold_seconds),
                client_name=self._core.client_name,
            )
        )
        self._core.connected()
        self._is_away = False

    def _lose(self, reason: str, attempt: Attempt) -> None:
        self._connection = None
        self._resources.close()
        self._core.disconnected(reason)
        if self._core.note_attempt(attempt, reason):
            self._backoff.reset()
        self._is_away = self._core.is_away

    def _pause(self, call: Call) -> None:
        """Wait before the next attempt. Raises PublishFailedError when it is too late for one."""
        if call.is_settled:
            return
        left_seconds = self._core.gives_up_at(call) - time.monotonic()
        if left_seconds > 0:
            time.sleep(min(self._backoff.next_delay(), left_seconds))
        if time.monotonic() >= self._core.gives_up_at(call):
            raise self._core.overdue(call)

    def close(self) -> None:
        """Close the connection; see `Publisher.close`."""
        with self._lock:
            self._closed = True
            self._connection = None
            self._resources.close()


def _nothing() -> None:
    """Do nothing: the caller looks by itself whether its call is settled."""


@contextmanager
def open_publisher(url: str, **options: Unpack[PublisherArguments]) -> Iterator[Publisher]:
    """Open a publisher for the length of the block.

    It connects when it publishes first. The parameters are those of `streamer.open_publisher`;
    `hold_messages` bounds the publications of all threads that wait. A program that never ends the
    block, such as a Django process, may make a `Publisher` and keep it.

    Raises `ValueError` as `streamer.open_publisher` does.
    """
    publisher = Publisher(url, PublisherOptions(**options))
    try:
        yield publisher
    finally:
        publisher.close()
