"""A topic's way into the hub: in order, each publication once, and every hole announced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import attrs
import pytest

from streamer.broker.history import Entry, TopicHistory
from streamer.hub.hub import Hub
from streamer.hub.streams import TopicStream
from streamer.hub.wakeup import Wakeup
from streamer.protocol.messages import Position
from streamer.protocol.publications import DecodedPublication
from streamer.protocol.topics import Kind, Topic
from streamer.source.books import BookKeeper
from streamer.source.report import SourceReport
from streamer.source.sequencer import HeldRoom, Sequencer
from streamer.source.sequencer_state import ImpossibleTransition, State
from tests.hub.listener import Listener, Message, listening

STOCK = Topic.parse("stock:A")

INVALID = b"invalid"


class House:
    """A sequencer, the hub behind it, and maybe a client that receives what comes out."""

    def __init__(self, *, topic_bytes: int = 1 << 20, total_bytes: int = 1 << 20) -> None:
        self.report = SourceReport(lambda: 0.0)
        self.room = HeldRoom(topic_bytes=topic_bytes, total_bytes=total_bytes)
        self.asks = False
        """Whether the sequencer wants its position read."""
        self.announced: list[str] = []
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

    # What the hub calls

    def want(self, stream: TopicStream) -> None:
        """The topic is new."""
        self.sequencer = Sequencer(
            self.hub.publishing,
            stream,
            reads=self,
            report=self.report,
            room=self.room,
            decode_entry=lambda _kind, _sequence, payload: None if payload == INVALID else payload,
            books=BookKeeper(
                self.hub.publishing, self.report, max_levels=10, max_book_bytes=1 << 18
            ),
        )
        self.sequencer.open()

    def join(self, topic: Topic) -> None:
        """The topic has its first client."""
        assert topic == STOCK
        self.sequencer.join()

    def release(self, topic: Topic) -> None:
        """Close the topic, which is not wanted any more."""

    # What the sequencer calls

    def add(self, sequencer: Sequencer) -> None:
        """The position has to be read."""
        assert sequencer.state is not State.LIVE
        self.asks = True

    def announce(self, stream: TopicStream) -> None:
        """Clients know the epoch by another name."""
        self.announced.append(stream.former_epoch)

    def note_behind(self) -> None:
        """A publication that Redis does not have was rejected."""

    # What the tests do

    def answer(self, record: TopicHistory | None) -> bool:
        """Have the position read; returns whether that was the end of it."""
        assert self.asks
        self.asks = False
        self.sequencer.ask()
        self.sequencer.answer(record)
        assert self.asks == (self.sequencer.state is not State.LIVE)
        return not self.asks

    def plain(self, *numbers: int) -> None:
        """Plain PUBLISHes arrive."""
        for number in numbers:
            text = json.dumps({"type": "x", "n": number}).encode()
            self.sequencer.take(Kind.PRICE, DecodedPublication(text, None), text)

    def positioned(self, *sequences: int, epoch: str = "redis", life: int = 1) -> None:
        """Publications with a position arrive; those of another `life` differ."""
        for sequence in sequences:
            text = text_of(sequence, epoch, life)
            publication = DecodedPublication(text, Position(epoch, sequence))
            self.sequencer.take(Kind.PRICE, publication, text)

    def heard(self) -> list[str]:
        """Return the messages that the client received since the last call, in short."""
        assert self.client is not None
        return [in_short(message) for message in self.client.heard()]


def text_of(sequence: int, epoch: str, life: int = 1) -> bytes:
    """A positioned publication, as Redis carries it."""
    return json.dumps({"type": "x", "life": life, "epoch": epoch, "sequence": sequence}).encode()


def entries(*sequences: int, epoch: str = "redis") -> list[Entry]:
    """Make entries of the history."""
    return [(Kind.PRICE, sequence, text_of(sequence, epoch)) for sequence in sequences]


def record(
    sequence: int, *held: int, epoch: str = "redis", follows: bool = True, end: int | None = None
) -> TopicHistory:
    """Make Redis' record of the topic: its last sequence, and the entries requested."""
    position = Position(epoch, sequence)
    return TopicHistory(
        position, follows, entries(*held, epoch=epoch), sequence if end is None else end
    )


def in_short(message: Message) -> str:
    """A message in one word."""
    position = f"{message.get('epoch', 'own')}/{message['sequence']}"
    if message["type"] == "gap":
        return f"gap {message['reason']} {position}"
    assert "previous" not in message, "nothing was merged"
    return f"snapshot {position}" if message.get("snapshot") else position


@pytest.fixture
def house() -> House:
    """A topic that no client holds yet, and whose position is not read."""
    return House()


@pytest.fixture
def heard_house(house: House) -> Iterator[House]:
    """A topic with a client at position 0 of the server's own epoch; Redis keeps no position."""
    house.answer(None)
    with listening(house.hub) as house.client:
        house.client.subscribe(STOCK)
        yield house


@pytest.fixture
def positioned_house(heard_house: House) -> House:
    """A topic whose client has received the producers' first two publications."""
    heard_house.positioned(1, 2)
    assert heard_house.heard() == ["redis/1", "redis/2"]
    return heard_house


# The machine


def test_an_event_that_the_state_does_not_allow_raises(house: House) -> None:
    """It is a bug of the caller, and must not pass."""
    with pytest.raises(ImpossibleTransition, match="without a question"):
        house.sequencer.answer(None)
    house.sequencer.close()
    with pytest.raises(ImpossibleTransition, match="stock:A: lost while closed"):
        house.sequencer.lose()


def test_an_answer_is_void_when_the_connection_was_lost_after_the_question(house: House) -> None:
    """It may not know what was published in between."""
    house.sequencer.ask()
    assert house.sequencer.is_asked
    house.sequencer.lose()
    assert not house.sequencer.is_asked


# Live


def test_plain_publications_are_numbered_by_the_server(heard_house: House) -> None:
    """In the server's own epoch, from one."""
    heard_house.plain(1, 2)
    assert heard_house.heard() == ["own/1", "own/2"]
    assert not heard_house.sequencer.positioned


def test_the_first_positioned_publication_of_all_names_the_epoch(heard_house: House) -> None:
    """Nothing was published in the epoch that clients know, so it is the same place: no gap."""
    former = heard_house.stream.epoch
    heard_house.positioned(1)
    assert heard_house.heard() == ["redis/1"]
    assert heard_house.announced == [former]
    for name in (former, "redis"):
        missed = heard_house.stream.missed(Position(name, 0))
        assert missed is not None
        assert [publication.sequence for publication in missed[0]] == [1]
    assert heard_house.stream.missed(Position("another", 0)) is None


def test_a_change_of_producers_is_a_gap(heard_house: House) -> None:
    """Neither plain publications nor positioned ones say what lies between the two."""
    heard_house.plain(1)
    heard_house.positioned(1, 2)
    assert heard_house.answer(record(2, 1, 2, follows=False))
    heard_house.plain(2)
    heard_house.positioned(3)
    assert heard_house.answer(record(3, 1, 2, 3, follows=False))
    heard = heard_house.heard()
    assert heard[:4] == ["own/1", "gap source_reconnected redis/0", "redis/1", "redis/2"]
    assert heard[4].startswith("gap source_reconnected own-")
    assert heard[5:7] == ["own/1", "gap source_reconnected redis/2"]
    assert heard[-1] == "redis/3"
    assert not heard_house.announced


def test_a_repeat_is_counted_and_dropped(positioned_house: House) -> None:
    """Its text is the one that clients have had."""
    positioned_house.positioned(1, 2, 3, 3)
    assert positioned_house.heard() == ["redis/3"]
    assert positioned_house.report.duplicates == 3


# Holes


def test_a_hole_is_filled_from_the_history(positioned_house: House) -> None:
    """Later publications are held until then, and all arrive once and in order."""
    positioned_house.positioned(5, 6)
    assert positioned_house.heard() == []
    assert positioned_house.sequencer.ask().after == Position("redis", 2)
    assert positioned_house.answer(record(6, 3, 4, 5, 6))
    assert positioned_house.heard() == ["redis/3", "redis/4", "redis/5", "redis/6"]
    positioned_house.positioned(7)
    assert positioned_house.heard() == ["redis/7"]
    assert positioned_house.report.duplicates == 2


def test_a_long_history_is_published_in_portions(positioned_house: House) -> None:
    """Clients are sent the same as if it were one, also behind an entry that is not valid."""
    house = positioned_house
    house.sequencer.lose()
    house.sequencer.ask()
    begin = house.stream.sequence
    known = record(begin + 250, *range(begin + 1, begin + 251))
    damaged = [*known.entries]
    damaged[99] = (Kind.PRICE, begin + 100, INVALID)
    known = attrs.evolve(known, entries=damaged)
    house.positioned(begin + 251)
    portions = []
    while house.sequencer.fill_in_part(known):
        portions.append(house.stream.sequence - begin)
    assert portions == [99, 199]
    assert house.sequencer.is_asked
    house.asks = False
    house.sequencer.answer(known)
    assert house.sequencer.state is State.LIVE
    assert house.stream.sequence == begin + 251
    heard = house.heard()
    assert heard[99] == f"gap history_expired redis/{begin + 100}"
    data = [message for message in heard if message.startswith("redis/")]
    assert data == [f"redis/{begin + n}" for n in range(1, 252) if n != 100]


def test_a_part_of_the_history_is_not_all(positioned_house: House) -> None:
    """More is read while the history holds more than came."""
    positioned_house.sequencer.lose()
    assert not positioned_house.answer(record(6, 3, 4, end=4))
    assert positioned_house.heard() == ["redis/3", "redis/4"]
    positioned_house.positioned(7)
    assert positioned_house.answer(record(6, 5, 6))
    assert positioned_house.heard() == ["redis/5", "redis/6", "redis/7"]


def test_a_hole_behind_the_question_is_asked_for_again(positioned_house: House) -> None:
    """Redis may have taken the publications after it answered."""
    positioned_house.sequencer.lose()
    positioned_house.sequencer.ask()
    positioned_house.positioned(5)
    positioned_house.sequencer.answer(record(3, 3))
    assert positioned_house.heard() == ["redis/3"]
    assert positioned_house.sequencer.state is State.CHECKING
    assert positioned_house.answer(record(5, 4, 5))
    assert positioned_house.heard() == ["redis/4", "redis/5"]


@pytest.mark.parametrize(
    ("kept", "heard"),
    [
        ((5, 6), ["gap history_expired redis/4", "redis/5", "redis/6"]),
        ((3, 6), ["redis/3", "gap history_expired redis/5", "redis/6"]),
        ((), ["gap history_expired redis/6"]),
        ((3, 4), ["redis/3", "redis/4", "gap history_expired redis/6"]),
    ],
)
def test_what_the_history_has_lost_is_a_gap(
    positioned_house: House, kept: tuple[int, ...], heard: list[str]
) -> None:
    """At the place where it is missing."""
    positioned_house.sequencer.lose()
    assert positioned_house.answer(record(6, *kept))
    positioned_house.positioned(7)
    assert positioned_house.heard() == [*heard, "redis/7"]


def test_an_entry_that_is_not_valid_is_a_gap(positioned_house: House) -> None:
    """It is not passed on, whichever way it comes: the position that it has is skipped."""
    positioned_house.sequencer.lose()
    damaged: list[Entry] = [(Kind.PRICE, 3, INVALID), *entries(4), (Kind.PRICE, 5, INVALID)]
    assert positioned_house.answer(TopicHistory(Position("redis", 5), True, damaged, 5))
    assert positioned_house.heard() == [
        "gap history_expired redis/3",
        "redis/4",
        "gap history_expired redis/5",
    ]


# Positions that are not the next ones


@pytest.mark.parametrize("sequence", [5, 2**53 - 1])
def test_nothing_is_ever_beyond_what_redis_holds(positioned_house: House, sequence: int) -> None:
    """A publication of somebody who may publish and should not: the honest ones go on."""
    positioned_house.positioned(sequence)
    assert positioned_house.answer(record(2))
    positioned_house.positioned(3)
    assert positioned_house.heard() == ["redis/3"]
    rejected = positioned_house.report.statistics(received=0, unrouted=0)
    assert rejected.rejected == 1
    assert "Redis is at 2 of redis" in (rejected.last_rejection or "")


def test_a_stale_publication_does_not_bring_its_epoch_back(positioned_house: House) -> None:
    """Redis has begun another; a server that was cut off still published in the old one."""
    positioned_house.positioned(1, epoch="next")
    assert positioned_house.answer(record(1, 1, epoch="next", follows=False))
    positioned_house.positioned(3)
    assert positioned_house.answer(record(1, epoch="next"))
    positioned_house.positioned(2, epoch="next")
    assert positioned_house.heard() == ["gap source_reconnected next/0", "next/1", "next/2"]


def test_a_taken_position_is_rejected_where_redis_has_not_gone_back(
    positioned_house: House,
) -> None:
    """Another publication at a position that clients have had: dropped, and not in silence."""
    positioned_house.positioned(1, life=2)
    assert positioned_house.sequencer.ask().may_begin
    assert positioned_house.answer(record(2))
    assert positioned_house.heard() == []
    assert positioned_house.report.statistics(received=0, unrouted=0).rejected == 1


def test_a_producer_that_starts_again_begins_another_epoch(positioned_house: House) -> None:
    """Where Redis keeps no position, nobody else can say: a gap, logged and counted."""
    positioned_house.positioned(1, 2, life=2)
    assert positioned_house.answer(None)
    positioned_house.positioned(3, life=2)
    gap, *heard = positioned_house.heard()
    assert gap.startswith("gap source_reconnected own-")
    assert gap.endswith("/0")
    assert heard == ["redis/1", "redis/2", "redis/3"]
    assert positioned_house.stream.epoch != "redis"
    assert positioned_house.report.statistics(received=0, unrouted=0).steps_back == 1


@pytest.mark.parametrize("times", [2, 3])
def test_each_life_of_a_producer_has_an_epoch_of_its_own(
    positioned_house: House, times: int
) -> None:
    """Else a position would mean two things."""
    epochs = {positioned_house.stream.epoch}
    for life in range(2, 2 + times):
        positioned_house.positioned(1, 2, life=life)
        assert positioned_house.answer(None)
        positioned_house.positioned(5, life=life)
        assert positioned_house.answer(None)
        epochs.add(positioned_house.stream.epoch)
    assert len(epochs) == 1 + times


def test_a_hole_that_nobody_can_fill_is_a_gap(positioned_house: House) -> None:
    """Where Redis keeps no position, those who hold on would wait for ever."""
    positioned_house.positioned(5, 6)
    assert positioned_house.answer(None)
    positioned_house.positioned(7)
    assert positioned_house.heard() == [
        "gap source_reconnected redis/4",
        "redis/5",
        "redis/6",
        "redis/7",
    ]


def test_a_hole_before_a_plain_publication_does_not_hold_it_up(positioned_house: House) -> None:
    """It has no position to wait for."""
    positioned_house.positioned(5)
    positioned_house.plain(1)
    assert positioned_house.answer(None)
    heard = positioned_house.heard()
    assert heard[:2] == ["gap source_reconnected redis/4", "redis/5"]
    assert heard[2].startswith("gap source_reconnected own-")
    assert heard[3] == "own/1"


# What is held


def test_what_is_held_is_bounded_in_bytes() -> None:
    """Positioned publications can be read again, so dropping them loses nothing."""
    house = House(topic_bytes=2000)
    house.answer(record(2, 1, 2, follows=False))
    with listening(house.hub) as house.client:
        house.client.subscribe(STOCK)
        house.sequencer.lose()
        later = range(3, 13)
        house.positioned(*later)
        assert house.room.used_bytes <= 2000
        assert house.sequencer.state is State.RECOVERING
        assert house.answer(record(12, *later))
        assert house.heard() == [f"redis/{number}" for number in later]
    assert house.room.used_bytes == 0


def test_all_topics_share_one_bound() -> None:
    """However many there are, a Redis that does not answer costs no more memory than that."""
    house = House(total_bytes=1000)
    house.room.used_bytes = 900
    house.plain(1)
    assert house.room.used_bytes == 900
    house.room.used_bytes = 0
    house.plain(2)
    assert house.room.used_bytes > 0
    house.sequencer.close()
    assert house.room.used_bytes == 0


def test_plain_publications_that_could_not_be_held_are_a_gap() -> None:
    """They are nowhere else."""
    house = House(topic_bytes=1000)
    house.answer(None)
    with listening(house.hub) as house.client:
        house.client.subscribe(STOCK)
        house.positioned(7)
        house.plain(1, 2, 3, 4)
        assert house.answer(None)
        gap, message = house.heard()
        assert gap.startswith("gap source_reconnected own-")
        assert message == "own/1"


# Lost connections


@pytest.mark.parametrize("lost", [False, True])
def test_a_topic_without_a_position_goes_on_plain(heard_house: House, lost: bool) -> None:
    """A gap is sent exactly if publications may have been missed."""
    heard_house.plain(1)
    if lost:
        heard_house.sequencer.lose()
    else:
        heard_house.sequencer.doubt()
    heard_house.plain(2)
    assert heard_house.heard() == ["own/1"]
    assert heard_house.answer(None)
    heard = heard_house.heard()
    assert heard[-1] == ("own/1" if lost else "own/2")
    assert len(heard) == 1 + lost


def test_what_two_connections_brought_is_not_joined(heard_house: House) -> None:
    """The connection is lost again before positions are read: a gap before each of the two."""
    heard_house.plain(1)
    heard_house.sequencer.lose()
    heard_house.plain(3)
    heard_house.sequencer.ask()
    heard_house.sequencer.lose()
    heard_house.plain(6)
    assert heard_house.heard() == ["own/1"]
    assert heard_house.answer(None)
    first, three, second, six = heard_house.heard()
    assert (three, six) == ("own/1", "own/1")
    assert first.startswith("gap source_reconnected own-")
    assert second.startswith("gap source_reconnected own-")
    assert first != second


def test_connections_that_brought_nothing_are_one_gap(heard_house: House) -> None:
    """However often it was lost in a row; and one at the end, if the last one brought nothing."""
    for _ in range(3):
        heard_house.sequencer.lose()
    heard_house.plain(1)
    for _ in range(3):
        heard_house.sequencer.lose()
    assert heard_house.answer(None)
    first, one, second = heard_house.heard()
    assert one == "own/1"
    assert first.startswith("gap")
    assert second.startswith("gap")


def test_positioned_publications_of_two_connections_are_joined_by_what_lies_between(
    positioned_house: House,
) -> None:
    """Redis has all of it, so there is no gap."""
    positioned_house.sequencer.lose()
    positioned_house.positioned(4)
    positioned_house.sequencer.lose()
    positioned_house.positioned(6)
    assert positioned_house.answer(record(6, 3, 4, 5, 6))
    assert positioned_house.heard() == ["redis/3", "redis/4", "redis/5", "redis/6"]


def test_a_client_that_could_not_wait_is_sent_a_gap(house: House) -> None:
    """Its answer had a position before the topic's publications were known."""
    with listening(house.hub) as house.client:
        house.client.subscribe(STOCK)
        house.plain(1)
        assert house.answer(None)
        gap, message = house.heard()
        assert gap.startswith("gap source_reconnected own-")
        assert message == "own/1"


# Epochs


def test_another_epoch_begins_where_its_publications_were_received(
    positioned_house: House,
) -> None:
    """Earlier publications of that epoch are sent as last known values."""
    positioned_house.sequencer.lose()
    positioned_house.positioned(5, epoch="next")
    assert positioned_house.answer(record(5, 3, 4, 5, epoch="next", follows=False))
    assert positioned_house.heard() == [
        "gap source_reconnected next/4",
        "snapshot next/4",
        "next/5",
    ]


def test_another_epoch_begins_at_its_end_where_its_history_does_not_reach_back(
    positioned_house: House,
) -> None:
    """Else there would be a second hole."""
    positioned_house.sequencer.lose()
    positioned_house.positioned(3, epoch="next")
    assert positioned_house.answer(record(5, 4, 5, epoch="next", follows=False))
    assert positioned_house.heard() == ["gap source_reconnected next/5", "snapshot next/5"]


def test_a_publication_of_any_age_may_be_held_for_another_epoch(positioned_house: House) -> None:
    """No list is made of all that may have come since: it would take more memory than there is."""
    positioned_house.sequencer.lose()
    positioned_house.positioned(1, epoch="next")
    end = 10**12
    assert positioned_house.answer(record(end, end - 1, end, epoch="next", follows=False))
    assert positioned_house.heard() == [
        f"gap source_reconnected next/{end}",
        f"snapshot next/{end}",
    ]


def test_a_topic_without_clients_takes_the_position_over(house: House) -> None:
    """Nobody knows another one, so no gap is sent; who comes gets the last known value."""
    house.positioned(5)
    assert house.answer(record(5, 3, 4, 5, follows=False))
    with listening(house.hub) as house.client:
        subscription = house.client.subscribe(STOCK)
        assert house.hub.position(subscription) == Position("redis", 5)
        house.positioned(6)
        assert house.heard() == ["redis/6"]


@pytest.mark.parametrize("lost", [False, True])
def test_an_epoch_that_is_empty_on_both_sides_is_the_same(heard_house: House, lost: bool) -> None:
    """Unless something may have been missed in between."""
    if lost:
        heard_house.sequencer.lose()
    else:
        heard_house.sequencer.doubt()
    assert heard_house.answer(record(0, follows=False))
    heard_house.positioned(1)
    gap = ["gap source_reconnected redis/0"] if lost else []
    assert heard_house.heard() == [*gap, "redis/1"]
    assert bool(heard_house.announced) is not lost


def test_positions_that_redis_has_lost_are_a_gap(positioned_house: House) -> None:
    """Redis has come back empty, and nothing has been published to it yet."""
    positioned_house.sequencer.lose()
    assert positioned_house.answer(None)
    (gap,) = positioned_house.heard()
    assert gap.startswith("gap source_reconnected own-")
    assert not positioned_house.sequencer.positioned


# The proof


def test_a_question_proves_the_position_by_the_last_publication(positioned_house: House) -> None:
    """As it was received, or read from the history; after a gap nothing is known to compare."""

    def digest() -> str:
        return positioned_house.sequencer.ask().digest

    def expected(sequence: int) -> str:
        return hashlib.sha1(text_of(sequence, "redis"), usedforsecurity=False).hexdigest()

    assert digest() == expected(2)
    positioned_house.sequencer.lose()
    assert positioned_house.answer(record(4, 3, 4))
    assert digest() == expected(4)
    positioned_house.sequencer.lose()
    assert positioned_house.answer(record(6))
    assert digest() == ""
    positioned_house.positioned(7)
    assert digest() == expected(7)


def test_redis_begins_anew_only_for_positions_that_it_had(house: House) -> None:
    """Producers that number for themselves leave no position in Redis that could be lost."""
    query = house.sequencer.ask()
    assert (query.may_begin, query.had_position, query.digest) == (False, False, "")
    house.answer(None)
    house.positioned(1)
    query = house.sequencer.ask()
    assert (query.may_begin, query.had_position) == (True, False)
    house.sequencer.lose()
    house.answer(record(1))
    query = house.sequencer.ask()
    assert (query.may_begin, query.had_position) == (True, True)
