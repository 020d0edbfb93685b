"""The rates of topics, from sequences."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from streamer.control.activity import TopicActivity
from streamer.hub.streams import TopicStream
from streamer.protocol.topics import Topic

TOPIC = Topic.parse("stock:A")


async def test_a_rate_is_publications_a_second(autojump_clock: MockClock) -> None:
    """It is over the last half minute at most, and unknown at first and in a new epoch."""
    stream = TopicStream(TOPIC, "e", history_length=1)
    activity = TopicActivity({TOPIC: stream})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(activity.run)
        assert activity.rate(stream) is None
        await trio.sleep(14)
        assert activity.rate(stream) is None
        for _ in range(100):
            await trio.sleep(1)
            stream.sequence += 4
        rate = activity.rate(stream)
        assert rate is not None
        assert rate == pytest.approx(4, rel=0.1)  # the clocks of test and task are not in step
        for _ in range(31):
            await trio.sleep(1)
        assert activity.rate(stream) == 0
        stream.epoch = "f"
        assert activity.rate(stream) is None
        nursery.cancel_scope.cancel()
