"""Playing of feeds, in virtual time.

Covers streamer.feeds.feed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import aclosing
from itertools import islice
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from streamer.feeds.feed import FeedError, FeedMessage
from streamer.feeds.playback import MAX_BATCH_MESSAGES, loop, play


def feed_of(*at_seconds: float) -> list[FeedMessage]:
    """Return messages that are due at these times."""
    return [FeedMessage(at, "stock:X:price", b"%d" % i) for i, at in enumerate(at_seconds)]


async def played(
    feed: Iterable[FeedMessage], *, speed: float = 1.0, lasts_seconds: float = 0.0
) -> list[tuple[float, list[bytes]]]:
    """Return the times and payloads of batches, for a consumer with a delay."""
    start_seconds = trio.current_time()
    batches = []
    async with aclosing(play(feed, speed=speed)) as playing:
        async for batch in playing:
            moment = trio.current_time() - start_seconds
            batches.append((moment, [message.payload for message in batch]))
            await trio.sleep(lasts_seconds)
    return batches


async def test_each_message_comes_when_it_is_due(autojump_clock: MockClock) -> None:
    """Messages due at the same time are one batch, in order."""
    assert await played(feed_of(0, 0, 1, 2.5, 2.5)) == [
        (0, [b"0", b"1"]),
        (1, [b"2"]),
        (2.5, [b"3", b"4"]),
    ]


@pytest.mark.parametrize(("speed", "moment"), [(2.0, 5.0), (0.5, 20.0), (0, 0)])
async def test_speed_divides_the_waiting(
    autojump_clock: MockClock, speed: float, moment: float
) -> None:
    """Speed 2 halves the time, and 0 does not wait."""
    *_, (last, payloads) = await played(feed_of(0, 10), speed=speed)
    assert (last, payloads[-1]) == (moment, b"1")


async def test_a_delay_is_caught_up_on(autojump_clock: MockClock) -> None:
    """A slow consumer gets overdue messages at once, later ones at the recorded pace."""
    assert await played(feed_of(0, 1, 2, 9), lasts_seconds=4) == [
        (0, [b"0"]),
        (4, [b"1", b"2"]),
        (9, [b"3"]),
    ]


async def test_a_batch_is_bounded_and_lets_other_tasks_run(autojump_clock: MockClock) -> None:
    """Other tasks run between batches, however many messages are due."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        async with aclosing(play(feed_of(*[0] * 5 * MAX_BATCH_MESSAGES))) as batches:
            lengths = [len(batch) async for batch in batches]
        nursery.cancel_scope.cancel()
    assert lengths == [MAX_BATCH_MESSAGES] * 5
    assert turns >= 4


async def test_what_precedes_damage_is_handed_out(autojump_clock: MockClock) -> None:
    """Messages before a damaged line are played."""

    def damaged(messages: list[FeedMessage]) -> Iterator[FeedMessage]:
        yield from messages
        raise FeedError(Path("recording"), 3, "damaged line")

    batches = play(damaged(feed_of(0, 0)))
    assert await anext(batches) == feed_of(0, 0)
    with pytest.raises(FeedError, match="line 3"):
        await anext(batches)
    with pytest.raises(FeedError, match="line 3"):
        await played(damaged([]))


async def test_no_feed_is_nothing_to_play() -> None:
    """An empty feed ends at once."""
    assert await played([]) == []


def test_a_loop_goes_on_where_the_pass_before_ended() -> None:
    """The times of a pass count from the last message of the one before, and never run back."""
    messages = list(islice(loop(lambda: feed_of(0, 2)), 5))
    assert [message.at_seconds for message in messages] == [0, 2, 2, 4, 4]
    assert [message.payload for message in messages] == [b"0", b"1", b"0", b"1", b"0"]


def test_a_loop_of_nothing_ends() -> None:
    """A pass without messages ends the loop."""
    assert list(loop(list)) == []
