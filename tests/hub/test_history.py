"""The history that a hub keeps of each topic for returning clients, and its bounds.

Covers streamer.hub.publishing.
"""

from __future__ import annotations

import pytest

from streamer.hub.fanout import FlushProgress
from streamer.hub.hub import Hub
from streamer.hub.publication import Publication, text_bytes
from streamer.hub.streams import TopicStream
from streamer.hub.wakeup import Wakeup
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import Kind, Topic
from tests.hub.listener import listening

STOCKS = [Topic.parse(f"stock:{name}") for name in "ABC"]
STOCK = STOCKS[0]


class NoUpstream:
    """Only the test publishes."""

    def want(self, stream: TopicStream) -> None:
        """A topic is wanted."""

    def join(self, topic: Topic) -> None:
        """A topic is heard."""

    def release(self, topic: Topic) -> None:
        """A topic is let go."""


class House:
    """A hub whose clock the test sets."""

    def __init__(self, *, history_length: int = 10, max_history_bytes: int = 1 << 20) -> None:
        self.now = 0.0
        self.hub = Hub(
            epoch="e",
            upstream=NoUpstream(),
            wakeup=Wakeup(),
            clock=lambda: self.now,
            timestamp=lambda: "2026-01-02T03:04:05.678Z",
            linger_seconds=5,
            history_length=history_length,
            max_history_bytes=max_history_bytes,
            writes_per_turn=1,
        )

    def publish(self, topic: Topic, count: int, *, kind: Kind = Kind.PRICE, size: int = 0) -> None:
        """Publish so many, each with that many bytes in its text."""
        stream = self.hub.stream(topic)
        for _ in range(count):
            head = b'{"type":"x","pad":"'
            text = head + b"x" * (size - len(head) - len(b'"}')) + b'"}'
            self.hub.publishing.publish_positioned(stream, kind, text, stream.sequence + 1)

    def kept(self, topic: Topic = STOCK) -> list[int]:
        """The sequences that are kept, which must be the topic's last ones."""
        stream = self.hub.stream(topic)
        kept = [publication.sequence for publication in stream.history]
        assert kept == list(range(stream.sequence - len(kept) + 1, stream.sequence + 1))
        return kept

    def missed(self, since: int, *kinds: Kind, epoch: str | None = None) -> list[int] | None:
        """The sequences that a client at `since` would be sent."""
        position = Position(epoch or self.hub.stream(STOCK).epoch, since)
        found = self.hub.missed(STOCK, position, kinds)
        missed = None if found is None else found[0]
        return None if missed is None else [publication.sequence for publication in missed]


def test_no_more_of_a_history_is_looked_at_than_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may name old positions in hundreds of topics with thousands of publications each."""
    house = House(history_length=1000)
    house.publish(STOCK, 1000, size=50)
    looked_at = 0

    def count(publications: list[Publication]) -> int:
        nonlocal looked_at
        looked_at += len(publications)
        return text_bytes(publications)

    monkeypatch.setattr("streamer.hub.streams.text_bytes", count)
    since = Position(house.hub.stream(STOCK).epoch, 0)
    assert house.hub.missed(STOCK, since, max_bytes=49) is None
    assert looked_at <= 100
    found = house.hub.missed(STOCK, since)
    assert found is not None
    assert ([one.sequence for one in found[0]], found[1]) == (list(range(1, 1001)), 50_000)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_no_more_than_the_history_length_is_kept(length: int) -> None:
    """And what came before that is known to be unknown."""
    house = House(history_length=length)
    house.publish(STOCK, 5)
    assert house.missed(5) == []
    assert house.missed(5 - length) == list(range(6 - length, 6))
    assert house.missed(4 - length) is None
    assert house.missed(6) is None
    assert house.missed(5, epoch="another") is None


def test_a_topic_without_publications_has_no_history_of_its_own() -> None:
    """Ten thousand topics may be kept that nobody publishes to, or no more."""
    house = House(history_length=3)
    unused, used = house.hub.stream(Topic.parse("stock:unused")), house.hub.stream(STOCK)
    nothing = unused.history
    house.publish(STOCK, 2)
    assert len(used.history) == 2
    assert unused.history is nothing
    assert not nothing
    house.hub.publishing.expire_history(used, used.order)
    assert used.history is nothing
    house.publish(STOCK, 1)
    assert house.kept() == [3]
    house.hub.publishing.forget_history(used)
    assert used.history is nothing


def test_kinds_that_were_not_asked_for_are_not_missed() -> None:
    """They do not even count as unknown where a history holds them."""
    house = House()
    house.publish(STOCK, 2)
    house.publish(STOCK, 2, kind=Kind.ORDERBOOK)
    assert house.missed(1, Kind.PRICE) == [2]
    assert house.missed(2, Kind.PRICE) == []
    assert house.missed(0, Kind.ORDERBOOK) == [3, 4]


def test_what_was_missed_of_a_topic_that_was_let_go_is_unknown() -> None:
    """It is a new one, in another epoch."""
    house = House()
    house.publish(STOCK, 2)
    epoch = house.hub.stream(STOCK).epoch
    house.now = 5.0
    house.hub.release_unused()
    assert house.missed(1, epoch=epoch) is None


def test_unused_topics_are_released_in_portions() -> None:
    """Ten thousand may be due together, when many clients have left together."""
    house = House()
    topics = [Topic.parse(f"stock:{number}") for number in range(5)]
    for topic in topics:
        house.hub.stream(topic)
    with house.hub.awaiting(topics[:1]):
        house.now = 5.0
        assert [house.hub.release_unused(2) for _ in range(3)] == [True, True, False]
        assert [*house.hub.streams] == topics[:1]


def test_all_histories_share_a_bound_in_bytes() -> None:
    """Each topic drops its own oldest publications, regardless of the size of a new one."""
    house = House(max_history_bytes=1000)
    house.publish(STOCKS[0], 4, size=100)
    house.publish(STOCKS[1], 4, size=100)
    house.publish(STOCKS[0], 1, size=500)
    assert house.kept(STOCKS[0]) == [4, 5]
    assert house.kept(STOCKS[1]) == [1, 2, 3, 4]
    house.publish(STOCKS[1], 8, size=100)
    assert house.kept(STOCKS[1]) == [9, 10, 11, 12]
    house.publish(STOCKS[2], 2, size=100)
    assert house.kept(STOCKS[2]) == [2]


@pytest.mark.parametrize("how", ["released", "expired", "another epoch"])
def test_what_is_forgotten_gives_its_bytes_back(how: str) -> None:
    """Else, in the end, nothing could be kept."""
    house = House(max_history_bytes=1000)
    for _ in range(5):
        house.publish(STOCK, 5, size=100)
        if how == "released":
            house.now += 5.0
            house.hub.release_unused()
        elif how == "expired":
            house.hub.expire_history(house.hub.publishing.order)
        else:
            house.hub.publishing.adopt(
                house.hub.stream(STOCK), Position(house.hub.publishing.new_epoch(), 0)
            )
        assert house.kept() == []
    house.publish(STOCKS[1], 10, size=100)
    assert len(house.kept(STOCKS[1])) == 10


def test_history_expires_by_age_over_all_topics() -> None:
    """Publications before a moment are dropped, and no others."""
    house = House()
    house.publish(STOCKS[0], 3)
    house.publish(STOCKS[1], 1)
    house.publish(STOCKS[0], 1)
    last = house.hub.publishing.order
    house.publish(STOCKS[0], 2)
    house.hub.expire_history(last)
    assert house.kept(STOCKS[0]) == [5, 6]
    assert house.kept(STOCKS[1]) == []
    assert house.missed(4) == [5, 6]
    assert house.missed(3) is None


def test_history_that_was_fetched_goes_before_what_is_kept() -> None:
    """As much of its end as there is room for, and it expires as if it were new."""
    house = House(history_length=4)
    stream = house.hub.stream(STOCK)
    house.hub.publishing.adopt(stream, Position("redis", 5))
    house.publish(STOCK, 2)
    earlier = [(Kind.PRICE, sequence, b"{}") for sequence in range(1, 6)]
    house.hub.publishing.extend_history(stream, earlier)
    assert house.kept() == [4, 5, 6, 7]
    assert house.missed(3) == [4, 5, 6, 7]
    house.hub.expire_history(house.hub.publishing.order - 1)
    assert house.kept() == [4, 5, 6, 7]
    house.hub.expire_history(house.hub.publishing.order)
    assert house.kept() == []


def test_fetched_history_has_room_in_bytes_or_none() -> None:
    """It shares the bound with all other."""
    house = House(max_history_bytes=250)
    stream = house.hub.stream(STOCK)
    house.hub.publishing.adopt(stream, Position("redis", 5))
    house.publish(STOCK, 1, size=100)
    house.hub.publishing.extend_history(stream, [(Kind.PRICE, n, b"x" * 100) for n in range(1, 6)])
    assert house.kept() == [5, 6]
    for _ in range(3):
        house.publish(STOCK, 1, size=100)
    assert house.kept() == [8, 9]


def test_fetched_history_gives_back_what_it_took() -> None:
    """That holds for a sector, too, whose messages are longer here than they were published."""
    house = House()
    sector = Topic.parse("sector:tech")
    stream = house.hub.stream(sector)
    house.hub.publishing.adopt(stream, Position("redis", 5))
    house.hub.publishing.extend_history(stream, [(Kind.PRICE, n, b'{"n":1}') for n in range(1, 6)])
    assert len(house.kept(sector)) == 5
    house.hub.expire_history(house.hub.publishing.order)
    assert house.hub.publishing.history_bytes == 0


def test_an_epoch_goes_by_two_names_until_the_next_begins() -> None:
    """Positions are found by the name that clients know and by the producers' name."""
    house = House()
    stream = house.hub.stream(STOCK)
    former = stream.epoch
    house.hub.publishing.rename_epoch(stream, "redis")
    house.publish(STOCK, 2)
    assert house.missed(1, epoch=former) == house.missed(1, epoch="redis") == [2]
    house.hub.publishing.start_epoch(stream, GapReason.HISTORY_EXPIRED, Position("redis", 5))
    assert house.missed(5, epoch="redis") == []
    assert house.missed(5, epoch=former) is None


def test_a_client_behind_a_replay_is_at_its_end() -> None:
    """The live flow follows the replay, kinds and all, and a pong confirms both."""
    house = House()
    hub = house.hub
    house.publish(STOCK, 2)
    house.publish(STOCK, 2, kind=Kind.ORDERBOOK)
    since = Position(hub.stream(STOCK).epoch, 1)
    with listening(hub) as client:
        client.heard()  # nobody was there
        recovery = client.recover(STOCK, since, Kind.PRICE)
        assert (recovery.missed_messages, recovery.recovered) == (1, True)
        assert recovery.positions == {STOCK: since}
        subscription = client.subscription(STOCK)
        assert hub.position(subscription) == Position(since.epoch, 2)
        assert client.heard() == [{"type": "x", "pad": ""}]
        assert subscription.confirmed == since
        hub.mark_ping(client.outbox)
        assert subscription.confirmed == since
        house.publish(STOCK, 1, kind=Kind.PRICE)
        hub.mark_pong(client.outbox)
        assert subscription.confirmed == Position(since.epoch, 2)
        assert [message.get("previous") for message in client.heard()] == [2]
        assert client.outbox.statistics().replayed == 1


def test_a_client_that_held_more_before_continues_from_there() -> None:
    """Restored with fewer kinds than it was sent, its next message names what it really follows."""
    house = House()
    hub = house.hub
    house.publish(STOCK, 1)
    house.publish(STOCK, 2, kind=Kind.ORDERBOOK)
    since = Position(hub.stream(STOCK).epoch, 3)
    with listening(hub) as client:
        client.heard()
        assert client.recover(STOCK, since, Kind.PRICE).missed_messages == 0
        assert hub.position(client.subscription(STOCK)) == since
        house.publish(STOCK, 1)
        (message,) = client.heard()
        assert "previous" not in message


def test_what_a_flush_still_owes_is_not_confirmed_by_a_ping() -> None:
    """The ping overtakes it, so an answer to that proves nothing new."""
    house = House()
    hub = house.hub
    hub.stream(STOCK)
    with listening(hub) as first, listening(hub) as second:
        clients = {client: client.subscribe(STOCK) for client in (first, second)}
        first.heard()
        house.publish(STOCK, 1)
        flush = hub.fanout.flush(FlushProgress(), stretched=False)
        next(flush)
        for client in clients:
            hub.mark_ping(client.outbox)
            hub.mark_pong(client.outbox)
        confirmed = [subscription.confirmed.sequence for subscription in clients.values()]
        assert sorted(confirmed) == [0, 1]
        owed = first if confirmed[0] == 0 else second
        assert owed.waiting() == b""
        for _ in flush:
            pass
        hub.mark_ping(owed.outbox)
        hub.mark_pong(owed.outbox)
        assert clients[owed].confirmed.sequence == 1
        assert owed.waiting() != b""
