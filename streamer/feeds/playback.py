"""Plays a feed: hands out its messages when they are due. The one module here that waits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Final

import attrs
import trio

from streamer.feeds.feed import FeedError, FeedMessage

MAX_BATCH_MESSAGES: Final = 128
"""A recording yields some 10,000 messages a second, so that reading this many at once holds up the
event loop for some 10 ms; more would make pipelining them no cheaper."""


async def play(
    feed: Iterable[FeedMessage], *, speed: float = 1.0
) -> AsyncGenerator[list[FeedMessage], None]:
    """The messages of `feed` as they fall due, those due at once together and in order.

    `speed` divides all waiting; 0 = no waiting. A message's moment counts from the start, not from
    the message before: a delay is caught up on and does not add up. Raises what reading the feed
    raises; what came before a damaged line is handed out first.
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
                await trio.sleep_until(due_seconds)  # a checkpoint even when that is past
            batch.append(message)
    except FeedError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def loop(feed: Callable[[], Iterable[FeedMessage]]) -> Iterator[FeedMessage]:
    """What `feed` makes, over and over, each pass beginning when the one before has ended.

    Made anew for each pass, where itertools.cycle would keep all of it. Ends if there is nothing.
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
