"""Unused topics: kept in order of their deadlines, within both bounds."""

from __future__ import annotations

from collections.abc import Iterable

from streamer.hub.streams import TopicStream
from streamer.hub.unused_topics import UnusedTopics
from streamer.protocol.topics import Topic

STREAMS = [TopicStream(Topic.parse(f"stock:{n}"), "e", history_length=1) for n in range(5)]


def numbers(streams: Iterable[TopicStream]) -> list[int]:
    """Which of the topics these are."""
    return [STREAMS.index(stream) for stream in streams]


def test_topics_are_given_up_when_their_time_is_over() -> None:
    """In the order in which they were left; one that is used again, or left again, is not."""
    unused = UnusedTopics(maximum=10, maximum_per_client=10)
    for number, stream in enumerate(STREAMS):
        assert not numbers(unused.add(stream, number, "client"))
    unused.discard(STREAMS[1])
    unused.discard(STREAMS[1])
    assert not numbers(unused.add(STREAMS[0], 9.0, None))
    assert numbers(unused.take_due(3.0)) == [2, 3]
    assert numbers(unused.take_due(100.0)) == [4, 0]
    assert len(unused) == 0
    assert not unused._by_client


def test_a_client_makes_room_at_its_own_expense() -> None:
    """Its oldest topic goes, not another's that is older still."""
    unused = UnusedTopics(maximum=10, maximum_per_client=2)
    given_up = [numbers(unused.add(STREAMS[0], 1.0, "other"))]
    given_up += [numbers(unused.add(stream, 2.0, "client")) for stream in STREAMS[1:]]
    assert given_up == [[], [], [], [1], [2]]
    assert len(unused) == 3


def test_beyond_the_bound_for_all_the_oldest_goes() -> None:
    """Whoever left it."""
    unused = UnusedTopics(maximum=2, maximum_per_client=10)
    given_up = [numbers(unused.add(s, 1.0, str(n))) for n, s in enumerate(STREAMS)]
    assert given_up == [[], [], [0], [1], [2]]
