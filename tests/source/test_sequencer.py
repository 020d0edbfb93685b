"""A topic's way into the hub: in order, each publication once, and every hole announced."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from streamer.broker.history import Entry, TopicHistory
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.hub.wakeup import Wakeup
from streamer.protocol.codec import DecodedPublication
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind, Topic
from streamer.source.report import SourceReport
from streamer.source.sequencer import Sequencer
from tests.hub.listener import Listener, Message, listening

STOCK = Topic.parse("stock:A")

MAX_HELD = 5


class House:
    """An sequencer, the hub behind it, and maybe a client that hears what comes out."""

    def __init__(self) -> None:
        self.report = SourceReport()
        self.hub = Hub(
            epoch="own",
            upstream=self,
            wakeup=Wakeup(),
            clock=lambda: 0.0,
            timestamp=lambda: "2026-01-02T03:04:05.678Z",
            linger_seconds=5,
            history_length=10,
            max_history_bytes=1 << 20,
        )
        self.stream = self.hub.stream(STOCK)
        self.client: Listener | None = None

    def want(self, stream: TopicStream) -> None:
        """The topic is new."""
        self.sequencer = Sequencer(self.hub, stream, self.report, max_held=MAX_HELD)

    def join(self, topic: Topic) -> None:
        """The topic has its first client."""

    def release(self, topic: Topic) -> None:
        """Nobody wants the topic any more."""

    def read(self) -> None:
        """The position is about to be read."""
        self.sequencer.reading = True

    def plain(self, number: int) -> bool:
        """A plain PUBLISH arrives."""
        text = json.dumps({"type": "x", "n": number}).encode()
        return self.sequencer.take(Kind.PRICE, DecodedPublication(text, None))

    def positioned(self, *sequences: int, epoch: str = "redis") -> bool:
        """Publications with a position arrive; whether the last was taken."""
        taken = True
        for sequence in sequences:
            publication = DecodedPublication(text_of(sequence, epoch), Position(epoch, sequence))
            taken = self.sequencer.take(Kind.PRICE, publication)
        return taken

    def heard(self) -> list[str]:
        """What the client has received since the last call, in short."""
        assert self.client is not None
        return [in_short(message) for message in self.client.heard()]


def text_of(sequence: int, epoch: str) -> bytes:
    """A positioned publication, as Redis carries it."""
    return json.dumps({"type": "x", "epoch": epoch, "sequence": sequence}).encode()


def entries(*sequences: int, epoch: str = "redis") -> list[Entry]:
    """What the history holds."""
    return [(Kind.PRICE, sequence, text_of(sequence, epoch)) for sequence in sequences]


def record(sequence: int, *held: int, epoch: str = "redis", follows: bool = True) -> TopicHistory:
    """What Redis knows of the topic: its last sequence, and the entries asked for."""
    return TopicHistory(Position(epoch, sequence), follows, entries(*held, epoch=epoch))


def in_short(message: Message) -> str:
    """A message in one word."""
    position = f"{message.get('epoch', 'own')}/{message['sequence']}"
    if message["type"] == "gap":
        return f"gap {message['reason']} {position}"
    assert "previous" not in message, "nothing was merged"
    return f"snapshot {position}" if message.get("snapshot") else position


@pytest.fixture
def house() -> House:
    """A topic that nobody hears yet."""
    return House()


@pytest.fixture
def heard_house(house: House) -> Iterator[House]:
    """A topic with a client, which has been told position 0 of the server's own epoch."""
    with listening(house.hub) as house.client:
        house.client.subscribe(STOCK)
        yield house


@pytest.fixture
def positioned_house(heard_house: House) -> House:
    """A topic whose client has had the producers' first two publications."""
    assert heard_house.positioned(1, 2)
    assert heard_house.heard() == ["redis/1", "redis/2"]
    heard_house.sequencer.renamed = False
    return heard_house


def test_plain_publications_are_numbered_here(heard_house: House) -> None:
    """In the server's own epoch, from one."""
    assert heard_house.plain(1)
    assert heard_house.plain(2)
    assert heard_house.heard() == ["own/1", "own/2"]
    assert not heard_house.sequencer.positioned


def test_the_first_placed_publication_of_all_names_the_epoch(heard_house: House) -> None:
    """Nothing was published in the one clients were told, so it is the same place: no gap."""
    former = heard_house.stream.epoch
    assert heard_house.positioned(1)
    assert heard_house.heard() == ["redis/1"]
    assert heard_house.sequencer.renamed
    for name in (former, "redis"):
        missed = heard_house.stream.missed(Position(name, 0))
        assert missed is not None
        assert [publication.sequence for publication in missed] == [1]
    assert heard_house.stream.missed(Position("another", 0)) is None


def test_a_placed_publication_after_plain_ones_is_a_gap(heard_house: House) -> None:
    """And so is a plain one after positioned ones: neither says what lies between."""
    heard_house.plain(1)
    heard_house.positioned(1, 2)
    heard_house.plain(2)
    heard_house.positioned(3)
    second = heard_house.stream.epoch
    heard = heard_house.heard()
    assert heard[0] == "own/1"
    assert heard[1:4] == ["gap source_reconnected redis/0", "redis/1", "redis/2"]
    assert heard[4].startswith("gap source_reconnected own-")
    assert heard[5:] == ["own/1", "gap source_reconnected redis/2", "redis/3"]
    assert second == "redis"
    assert not heard_house.sequencer.renamed


def test_a_stream_that_is_entered_in_its_middle_begins_there(heard_house: House) -> None:
    """Whatever came before was not received, and a gap says so."""
    assert heard_house.positioned(7)
    assert heard_house.heard() == ["gap source_reconnected redis/6", "redis/7"]


def test_what_was_had_before_is_dropped(positioned_house: House) -> None:
    """A repeat is counted and goes no further."""
    assert positioned_house.positioned(1, 2, 3, 3)
    assert positioned_house.heard() == ["redis/3"]
    assert positioned_house.report.duplicates == 3


def test_a_hole_is_filled_from_the_history(positioned_house: House) -> None:
    """What comes behind it waits until then, and all arrives once and in order."""
    assert not positioned_house.positioned(5)
    positioned_house.read()
    assert positioned_house.positioned(6)
    assert positioned_house.heard() == []
    assert positioned_house.sequencer.query.after == Position("redis", 2)
    assert positioned_house.sequencer.catch_up(record(6, 3, 4, 5, 6))
    assert positioned_house.heard() == ["redis/3", "redis/4", "redis/5", "redis/6"]
    assert positioned_house.positioned(7)
    assert positioned_house.report.duplicates == 2


def test_an_answer_that_has_a_part_is_no_end(positioned_house: House) -> None:
    """More is asked for while the history holds more than was read, or what is held has a hole."""
    positioned_house.read()
    assert not positioned_house.sequencer.catch_up(record(6, 3, 4))
    assert positioned_house.heard() == ["redis/3", "redis/4"]
    positioned_house.read()
    positioned_house.positioned(8, 9)
    assert not positioned_house.sequencer.catch_up(record(6, 5, 6))
    positioned_house.read()
    assert positioned_house.sequencer.catch_up(record(9, 7, 8, 9))
    assert positioned_house.heard() == [f"redis/{number}" for number in (5, 6, 7, 8, 9)]


@pytest.mark.parametrize(
    ("answer", "heard"),
    [
        (record(7, 6, 7), ["gap history_expired redis/5", "redis/6", "redis/7"]),
        (record(7, 3, 6, 7), ["redis/3", "gap history_expired redis/5", "redis/6", "redis/7"]),
        (record(7), ["gap history_expired redis/7"]),
    ],
    ids=["its beginning", "its middle", "all of it"],
)
def test_what_the_history_has_lost_is_a_gap(
    positioned_house: House, answer: TopicHistory, heard: list[str]
) -> None:
    """At its place, with where the stream resumes; then it goes on without another."""
    positioned_house.read()
    assert positioned_house.sequencer.catch_up(answer)
    assert positioned_house.positioned(8)
    assert positioned_house.heard() == [*heard, "redis/8"]


def test_a_hole_that_nobody_can_fill_is_a_gap(positioned_house: House) -> None:
    """A publication that Redis carried and forgot: those who hold on would wait for ever."""
    assert not positioned_house.positioned(5)
    positioned_house.read()
    positioned_house.positioned(6)
    assert not positioned_house.sequencer.catch_up(record(2))
    positioned_house.sequencer.skip_hole()
    assert positioned_house.positioned(7)
    assert positioned_house.heard() == [
        "gap source_reconnected redis/4",
        "redis/5",
        "redis/6",
        "redis/7",
    ]


def test_a_hole_before_a_plain_publication_does_not_hold_it_up(positioned_house: House) -> None:
    """It has no place to wait for."""
    positioned_house.positioned(5)
    positioned_house.read()
    positioned_house.plain(1)
    assert not positioned_house.sequencer.catch_up(record(2))
    positioned_house.sequencer.skip_hole()
    heard = positioned_house.heard()
    assert heard[:2] == ["gap source_reconnected redis/4", "redis/5"]
    assert heard[2].startswith("gap source_reconnected own-")
    assert heard[3] == "own/1"


def test_no_more_is_held_than_was_agreed(positioned_house: House) -> None:
    """What has a place can be read again, so nothing is lost with it."""
    positioned_house.read()
    later = range(3, 3 + MAX_HELD + 1)
    positioned_house.positioned(*later)
    assert positioned_house.sequencer.unproven
    assert positioned_house.sequencer.catch_up(record(later[-1], *later))
    assert positioned_house.heard() == [f"redis/{number}" for number in later]


def test_plain_publications_that_could_not_be_held_are_a_gap(heard_house: House) -> None:
    """They are nowhere else."""
    heard_house.read()
    for number in range(MAX_HELD + 2):
        heard_house.plain(number)
    assert heard_house.sequencer.catch_up(None)
    gap, message = heard_house.heard()
    assert gap.startswith("gap source_reconnected own-")
    assert message == "own/1"


@pytest.mark.parametrize("unproven", [False, True])
def test_a_topic_without_a_position_goes_on_plain(heard_house: House, unproven: bool) -> None:
    """With a gap exactly where something may have been missed."""
    heard_house.plain(1)
    heard_house.sequencer.unproven = unproven
    heard_house.read()
    heard_house.plain(2)
    assert heard_house.heard() == ["own/1"]
    assert heard_house.sequencer.catch_up(None)
    heard = heard_house.heard()
    assert heard[-1] == ("own/1" if unproven else "own/2")
    assert len(heard) == 1 + unproven
    assert not heard_house.sequencer.unproven


def test_positions_that_redis_has_lost_are_a_gap(positioned_house: House) -> None:
    """A Redis that came back empty, to which nobody has published yet."""
    positioned_house.sequencer.unproven = True
    positioned_house.read()
    assert positioned_house.sequencer.catch_up(None)
    (gap,) = positioned_house.heard()
    assert gap.startswith("gap source_reconnected own-")
    assert not positioned_house.sequencer.positioned


def test_another_epoch_begins_with_a_gap_and_its_last_values(positioned_house: House) -> None:
    """The new stream was at 4 when it was read; then it goes on live."""
    positioned_house.read()
    positioned_house.positioned(5, epoch="next")
    answer = record(4, 3, 4, epoch="next", follows=False)
    assert positioned_house.sequencer.catch_up(answer)
    assert positioned_house.heard() == [
        "gap source_reconnected next/4",
        "snapshot next/4",
        "next/5",
    ]


def test_nobody_is_told_of_what_was_before_the_first_client(house: House) -> None:
    """The position is taken over as it stands, with the last known value for who comes."""
    house.sequencer.unproven = True
    house.read()
    house.positioned(5)
    assert house.sequencer.catch_up(record(4, 3, 4, follows=False))
    with listening(house.hub) as house.client:
        subscription = house.client.subscribe(STOCK)
        assert house.hub.position(subscription) == Position("redis", 5)
        (last,) = house.hub.snapshot(subscription, subscription.lane.kinds)
        assert json.loads(last.snapshot_text)["sequence"] == 5
        house.positioned(6)
        assert house.heard() == ["redis/6"]


@pytest.mark.parametrize("unproven", [False, True])
def test_an_epoch_that_is_empty_on_both_sides_is_the_same(
    heard_house: House, unproven: bool
) -> None:
    """Unless something may have been missed in between."""
    heard_house.sequencer.unproven = unproven
    heard_house.read()
    assert heard_house.sequencer.catch_up(record(0, follows=False))
    heard_house.positioned(1)
    gap = ["gap source_reconnected redis/0"] if unproven else []
    assert heard_house.heard() == [*gap, "redis/1"]
    assert heard_house.sequencer.renamed is not unproven


@pytest.mark.parametrize("positioned", [False, True])
@pytest.mark.parametrize("unproven", [False, True])
def test_redis_begins_anew_only_where_it_may_have_lost_something(
    house: House, positioned: bool, unproven: bool
) -> None:
    """A reader that missed nothing and asks after a hole must not end everybody's epoch."""
    house.sequencer.positioned, house.sequencer.unproven = positioned, unproven
    assert house.sequencer.query.may_have_lost is (positioned and unproven)
