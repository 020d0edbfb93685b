"""Play a feed: yield its messages when they are due. The only module of feeds that waits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Final

import attrs
import trio

from streamer.feeds.feed import FeedError, FeedMessage

MAX_BATCH_MESSAGES: Final = 128
"""Messages that are read without a checkpoint: at some 10,000 per second, about 10 ms.

Pipelining more of them to Redis would not be cheaper.
"""


async def play(
    feed: Iterable[FeedMessage], *, speed: float = 1.0
) -> AsyncGenerator[list[FeedMessage], None]:
    """Yield the messages of `feed` as they fall due, those due at the same time as one list.

    Delays are divided by `speed`; with 0 there are none. They are measured from the start rather
    than from the message before, so that one late message does not make all later ones late. Raises
    the errors of the feed; FeedError after the messages before the damage.
    """
    start_seconds = trio.current_time()
    batch: list[FeedMessage] = []
    try:
        for message in feed:
            due_seconds = start_seconds + (message.at_seconds / speed if speed else 0)
            if batch and (due_seconds > trio.current_time() or len(batch) == MAX_BATCH_MESSAGES):
                yield batch
                batch = []
            if not batch:
                await trio.sleep_until(due_seconds)  # a checkpoint even if that is past
            batch.append(message)
    except FeedError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def loop(feed: Callable[[], Iterable[FeedMessage]]) -> Iterator[FeedMessage]:
    """Repeat the feed that `feed` returns; each pass begins at the end of the one before.

    `feed` is called for each pass: itertools.cycle would keep all messages in memory. Ends when a
    pass has no messages.
    """
    begins_seconds = 0.0
    while True:
        at_seconds: float | None = None
        for message in feed():
            at_seconds = begins_seconds + message.at_seconds
            yield attrs.evolve(message, at_seconds=at_seconds)
        if at_seconds is None:
            return
        begins_seconds = at_seconds
