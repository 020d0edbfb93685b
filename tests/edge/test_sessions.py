"""Records of sessions, in virtual time, and two servers that share them."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import orjson
import pytest
import structlog
import trio
import trio.testing
from trio.testing import MockClock

from streamer.edge.ended_sessions import EndedSessions
from streamer.edge.sessions import RestorableSessions
from streamer.hub.hub import Hub
from streamer.hub.outbox import Outbox
from streamer.hub.renditions import Detail
from streamer.hub.sessions import (
    HeldSubscription,
    SessionRecord,
    decode_record,
    encode_session,
)
from streamer.hub.streams import SentSnapshots, TopicStream
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.hub.wakeup import Wakeup
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic
from streamer.session_store import StoreUnavailableError
from streamer.wire.json import WebSocketJson
from tests.helpers.clients import connected
from tests.helpers.server import running_server
from tests.helpers.session_records import encoded

STOCK = Topic.parse("stock:A")
MARKET = Topic.parse("market:KOSPI")

LIFETIME_SECONDS = 300.0

WIRE = WebSocketJson(lambda: "")


class ScriptedStore:
    """A store that is away when the test says so."""

    def __init__(self) -> None:
        self.away = False
        self.saves: list[list[SessionRecord]] = []
        self.encoded: dict[str, bytes] = {}

    @property
    def records(self) -> dict[str, SessionRecord]:
        """The decoded records."""
        return {session_id: decode_record(encoded) for session_id, encoded in self.encoded.items()}

    async def save(self, records: Mapping[str, bytes]) -> None:
        """Keep records."""
        await self._answer()
        self.saves.append([decode_record(encoded) for encoded in records.values()])
        self.encoded |= records

    async def forget(self, session_ids: Sequence[str]) -> None:
        """Delete records."""
        await self._answer()
        for session_id in session_ids:
            self.encoded.pop(session_id, None)

    async def load(self, session_id: str) -> bytes | None:
        """Return a record."""
        await self._answer()
        return self.encoded.get(session_id)

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailableError("away")


class House:
    """A hub with clients that receive nothing, and their restorable sessions."""

    def __init__(self, store: ScriptedStore | None, **options: Any) -> None:
        self.live: dict[str, Outbox] = {}
        limits = {"lifetime_seconds": LIFETIME_SECONDS, "max_bytes": 1 << 20} | options
        self.sessions = RestorableSessions(self.live.get, store, **limits)
        self.hub = Hub(
            epoch="e",
            upstream=self,
            wakeup=Wakeup(),
            clock=lambda: 0.0,
            timestamp=lambda: "",
            linger_seconds=5,
            history_length=10,
            max_history_bytes=1 << 20,
        )

    def want(self, stream: TopicStream) -> None:
        """Ignore that a topic is wanted."""

    def join(self, topic: Topic) -> None:
        """Ignore that a topic has a subscriber."""

    release = join

    def on_blocked(self) -> None:
        """Ignore that a socket is full."""

    on_broken = on_overflow = on_blocked

    def connect(self, name: str, *wants: Want) -> Outbox:
        """Add a client and subscribe."""
        outbox = self.live[name] = Outbox(name, -1, self, WIRE, max_queued_bytes=1000)
        self.hub.add(outbox)
        if wants:
            self.hub.subscribe(outbox, wants)
            self.sessions.changed(name)
        return outbox

    def disconnect(self, name: str, address: str = "") -> None:
        """End a client's session."""
        self.sessions.ended(self.live[name], address=address)
        self.hub.remove(self.live.pop(name))


@pytest.fixture
def store() -> ScriptedStore:
    """Return a store that is there."""
    return ScriptedStore()


@pytest.fixture
async def house(store: ScriptedStore) -> AsyncIterator[House]:
    """Run the session task of a house."""
    house = House(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.sessions.run)
        yield house
        nursery.cancel_scope.cancel()


@pytest.fixture
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """Capture the log."""
    with structlog.testing.capture_logs() as logs:
        yield logs


def topics(record: SessionRecord | None) -> list[str] | None:
    """Return the topics of a record."""
    return None if record is None else [str(held.topic) for held in record.subscriptions]


async def test_a_record_has_all_that_was_asked_for(house: House) -> None:
    """The record has all options, while the client is connected and after that."""
    requests = [
        Want(STOCK, SubscriptionOptions(Mode.ALL, frozenset({Kind.ORDERBOOK}))),
        Want(MARKET, SubscriptionOptions(Mode.LATEST, frozenset(), 0.5)),
    ]
    house.connect("one", *requests)
    there = await house.sessions.load("one")
    house.disconnect("one")
    gone = await house.sessions.load("one")
    assert there is not None
    assert gone == attrs.evolve(there, ended=True)
    stock, market = there.subscriptions
    assert (stock.topic, stock.mode, stock.kinds) == (STOCK, Mode.ALL, frozenset({Kind.ORDERBOOK}))
    assert (market.topic, market.mode, market.kinds) == (
        MARKET,
        Mode.LATEST,
        frozenset({Kind.STATUS}),
    )
    assert (stock.interval_seconds, market.interval_seconds) == (0.0, 0.5)
    assert stock.confirmed.epoch == house.hub.stream(STOCK).epoch
    assert await house.sessions.load("another") is None


@pytest.mark.parametrize("stored", [False, True])
async def test_a_session_that_has_ended_lives_for_its_lifetime(
    stored: bool, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """It cannot be restored later, even if its record has not been removed yet."""
    house = House(store if stored else None)
    house.connect("one", Want(STOCK))
    house.disconnect("one")
    store.away = True
    await trio.sleep(LIFETIME_SECONDS - 0.1)
    assert topics(await house.sessions.load("one")) == ["stock:A"]
    await trio.sleep(0.1)
    with pytest.raises(StoreUnavailableError) if stored else nullcontext():
        assert await house.sessions.load("one") is None


async def test_what_has_expired_is_forgotten(house: House, autojump_clock: MockClock) -> None:
    """Otherwise every client that ever came would stay in memory."""
    house.connect("one", Want(STOCK))
    house.connect("two", Want(STOCK))
    house.disconnect("one")
    await trio.sleep(10)
    house.disconnect("two")
    await trio.sleep(LIFETIME_SECONDS - 8)
    assert "one" not in house.sessions._ended
    assert "two" in house.sessions._ended
    await trio.sleep(10)
    assert house.sessions.ended_bytes == 0


async def test_a_client_without_subscriptions_leaves_nothing_to_restore(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """A client that leaves without a subscription has no record."""
    house.connect("one")
    house.disconnect("one")
    await trio.sleep(2)
    assert await house.sessions.load("one") is None
    assert store.saves == []


async def test_changes_of_live_sessions_are_saved_together(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Once for each client, with its subscriptions by then; nothing where nothing has changed."""
    for number in range(3):
        house.connect(f"client {number}", Want(STOCK))
    house.hub.subscribe(house.live["client 0"], [Want(MARKET)])
    house.sessions.changed("client 0")
    await trio.sleep(5)
    (saved,) = store.saves
    assert [topics(record) for record in saved] == [
        ["stock:A", "market:KOSPI"],
        ["stock:A"],
        ["stock:A"],
    ]
    assert not any(record.ended for record in saved)


async def test_a_session_that_ends_is_saved_at_once(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Its client may be on its way to another server; live sessions still have their turn."""
    house.connect("live", Want(STOCK))
    for number in range(20):
        name = f"client {number}"
        house.connect(name, Want(STOCK))
        house.disconnect(name)
        await trio.testing.wait_all_tasks_blocked()
        assert store.records[name].ended
        await trio.sleep(0.01)
    assert topics(store.records["live"]) == ["stock:A"]
    assert not store.records["live"].ended


async def test_a_session_without_subscriptions_is_forgotten_by_the_store(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Its client has unsubscribed: to restore an older record would be wrong."""
    outbox = house.connect("one", Want(STOCK))
    await trio.sleep(1)
    assert topics(store.records["one"]) == ["stock:A"]
    house.hub.unsubscribe(outbox, [STOCK])
    house.disconnect("one")
    await trio.sleep(1)
    assert store.records == {}


async def test_a_session_that_waits_for_the_topics_of_an_earlier_one_has_no_record(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Not with the few topics that it has meanwhile, alive or ended, here or in the store."""
    house.connect("one", Want(STOCK))
    house.connect("two", Want(STOCK))
    await trio.sleep(1)
    assert set(store.records) == {"one", "two"}
    for name in ("one", "two"):
        house.sessions.suspend(name)
        house.sessions.changed(name)  # a ping was answered
    await trio.sleep(1)
    assert store.records == {}
    assert await house.sessions.load("one") is None
    house.sessions.resume("one")
    house.disconnect("two")
    await trio.sleep(1)
    assert set(store.records) == {"one"}
    assert topics(await house.sessions.load("one")) == ["stock:A"]
    assert await house.sessions.load("two") is None


async def test_a_record_of_a_live_session_is_loaded_twice(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """The other server may be about to save the end of it, or the session at all."""
    stale = SessionRecord("one", [])
    final = attrs.evolve(stale, ended=True)

    async def save_late(record: SessionRecord) -> None:
        await trio.sleep(0.1)
        store.encoded[record.session_id] = encoded(record)

    store.encoded["one"] = encoded(stale)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(save_late, final)
        assert await house.sessions.load("one") == final
        del store.encoded["one"]
        nursery.start_soon(save_late, final)
        assert await house.sessions.load("one") == final
        store.encoded["one"] = encoded(stale)
        assert await house.sessions.load("one") == stale


async def test_a_flood_of_changes_is_saved_in_portions(
    house: House, store: ScriptedStore, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No portion holds up the event loop for long."""
    monkeypatch.setattr("streamer.edge.sessions._BYTES_PER_SAVE", 2_000)
    for number in range(250):
        house.connect(f"client {number}", Want(STOCK))
    await trio.sleep(1.5)
    assert len(store.records) == 250
    assert len(store.saves) > 10


async def test_memory_for_ended_sessions_is_bounded(
    store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """The oldest sessions of the address that holds the most are dropped, in the store too."""
    house = House(store, max_bytes=100_000)
    house.connect("quiet", Want(STOCK))
    house.disconnect("quiet", address="192.0.2.1")
    requests = [Want(Topic.parse(f"stock:{number}")) for number in range(100)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.sessions.run)
        for number in range(100):
            house.connect(f"busy {number}", *requests)
            house.disconnect(f"busy {number}", address="192.0.2.2")
            await trio.sleep(0.05)
            assert house.sessions.ended_bytes <= 100_000
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert topics(await house.sessions.load("quiet")) == ["stock:A"]
    assert await house.sessions.load("busy 0") is None
    assert len(topics(await house.sessions.load("busy 99")) or []) == 100
    assert set(store.records) == {"quiet", *(f"busy {n}" for n in range(100))} & set(
        house.sessions._ended._ended
    )


class CountedAddresses(Counter[str]):
    """The bytes of addresses, and how often all of them were looked at."""

    looks = 0

    def items(self) -> Any:
        """Count one look."""
        self.looks += 1
        return super().items()


async def test_to_make_room_all_addresses_are_looked_at_once(autojump_clock: MockClock) -> None:
    """To look once for each record dropped held up the loop for a minute, with 67,000 addresses.

    The oldest records are dropped where all addresses hold the same.
    """
    ended = EndedSessions(lifetime_seconds=LIFETIME_SECONDS, max_bytes=1_000_000)
    addresses = ended._bytes_by_address = CountedAddresses()
    dropped: list[str] = []
    number = 0
    while not dropped:
        # In an order that is not that of the addresses.
        dropped = ended.add(f"session {number}", b"record", address=f"192.0.2.{9999 - number}")
        number += 1
    assert dropped == [f"session {gone}" for gone in range(len(dropped))]
    assert len(dropped) > 100
    assert addresses.looks == 1
    await trio.sleep(LIFETIME_SECONDS)
    assert sum(len(ended.expire()) for _ in range(number)) == number - len(dropped)
    assert (len(addresses), ended.size_bytes) == (0, 0)


async def test_records_that_end_together_are_forgotten_in_portions(
    autojump_clock: MockClock,
) -> None:
    """All clients may have left in the same moment; none of the records can be had any more."""
    ended = EndedSessions(lifetime_seconds=LIFETIME_SECONDS, max_bytes=1 << 20)
    for number in range(1500):
        ended.add(f"session {number}", b"record", address="192.0.2.1")
    await trio.sleep(LIFETIME_SECONDS)
    assert ended.get("session 1499") is None
    assert [len(ended.expire()) for _ in range(3)] == [1000, 500, 0]
    assert ended.size_bytes == 0


def test_a_record_takes_no_more_memory_than_its_bytes() -> None:
    """The bound counts the bytes, so the buffer that the encoder wrote into is not kept."""
    house = House(None)
    for name, count in ("few", 1), ("many", 500):
        wants = [Want(Topic.parse(f"stock:{number}")) for number in range(count)]
        outbox = house.connect(name, *wants)
        encode_session(outbox, ended=True)  # makes what all records share
        tracemalloc.start()
        try:
            record = encode_session(outbox, ended=True)
            assert tracemalloc.get_traced_memory()[0] < len(record) + 1000
        finally:
            tracemalloc.stop()


async def test_a_record_larger_than_the_bound_is_not_kept(autojump_clock: MockClock) -> None:
    """With a bound of 0 no session can be restored."""
    house = House(None, max_bytes=0)
    house.connect("one", Want(STOCK))
    house.disconnect("one")
    assert await house.sessions.load("one") is None


async def test_with_a_lifetime_of_0_nothing_is_kept(
    store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Neither here nor in the store, which could not keep it for 0 seconds."""
    house = House(store, lifetime_seconds=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.sessions.run)
        house.connect("one", Want(STOCK))
        await trio.sleep(1)
        house.disconnect("one")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert store.saves == []
    assert await house.sessions.load("one") is None


@pytest.mark.parametrize(("epochs", "most_bytes"), [(1, 20), (500, 60)])
def test_a_record_is_compact(epochs: int, most_bytes: int) -> None:
    """Each topic costs some bytes beside its name and, if it has one of its own, its epoch."""
    held = [
        HeldSubscription(
            Topic.parse(f"stock:{n:06}"),
            Mode.LATEST,
            frozenset({Kind.PRICE}),
            0.0,
            Position(f"{n % epochs:032}", n),
        )
        for n in range(500)
    ]
    record = SessionRecord("s", held)
    text = encoded(record)
    assert len(text) < 500 * most_bytes
    assert decode_record(text) == record


@pytest.mark.parametrize(
    "change",
    [
        {"interval_seconds": -1.0},
        {"interval_seconds": None},
        {"type": "later"},
        {"positions": {"e": {"*": 1}}},
        {"positions": {"e": {"A": -1}}},
        {"positions": {"e": {"A": 2**53}}},
        {"positions": {"e" * 65: {"A": 1}}},
        {"positions": {"e": 1}},
        {"kinds": ["later"]},
    ],
)
def test_a_record_of_another_origin_is_refused(change: dict[str, object]) -> None:
    """A value that no subscription can have is a ValueError."""
    group = {
        "type": "stock",
        "mode": "latest",
        "kinds": [],
        "interval_seconds": 0.0,
        "positions": {"e": {"A": 1}},
    }
    record = {"session_id": "s", "ended": False, "groups": [group | change]}
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the text
        decode_record(orjson.dumps(record))


async def test_what_the_store_did_not_take_is_written_when_it_is_back(
    house: House,
    store: ScriptedStore,
    logs: list[structlog.typing.EventDict],
    autojump_clock: MockClock,
) -> None:
    """Meanwhile it is logged, not at each attempt; here, sessions can be restored."""
    store.away = True
    house.connect("one", Want(STOCK))
    house.disconnect("one")
    await trio.sleep(3.5)
    assert [line["event"] for line in logs] == ["sessions not saved"]
    assert topics(await house.sessions.load("one")) == ["stock:A"]
    logs.clear()
    with pytest.raises(StoreUnavailableError):
        await house.sessions.load("of another server")
    assert [line["event"] for line in logs] == ["session not loaded"]
    store.away = False
    await trio.sleep(1)
    assert topics(store.records["one"]) == ["stock:A"]


async def test_sessions_of_other_servers_come_from_the_store(store: ScriptedStore) -> None:
    """The other server loads the record; without a store it has none."""
    first, second, alone = House(store), House(store), House(None)
    first.connect("one", Want(STOCK))
    await first.sessions.save()
    assert topics(await second.sessions.load("one")) == ["stock:A"]
    assert await alone.sessions.load("one") is None
    await alone.sessions.save()


async def test_a_client_that_is_being_closed_keeps_what_it_held(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Its subscriptions are removed before its connection is closed; the record remains."""
    outbox = house.connect("one", Want(STOCK))
    house.sessions.ended(outbox)
    house.hub.retire(outbox, "too slow")
    assert topics(await house.sessions.load("one")) == ["stock:A"]
    await trio.sleep(2)
    house.disconnect("one")
    await trio.sleep(2)
    assert topics(store.records["one"]) == ["stock:A"]
    assert topics(await house.sessions.load("one")) == ["stock:A"]


async def test_a_client_that_goes_to_another_server_has_its_last_subscriptions(
    redis_url: str,
) -> None:
    """It subscribes, leaves and restores its session elsewhere, without a pause in between."""
    async with running_server(redis=redis_url) as first, running_server(redis=redis_url) as second:
        for number in range(5):
            async with connected(first) as client:
                await client.subscribe("stock:A", "stock:B")
                await client.unsubscribe("stock:A")
                await client.subscribe(f"stock:{number}")
            async with connected(second) as elsewhere:
                answer = await elsewhere.request(
                    type="reconnect", session_id=client.session_id, positions={}
                )
                assert answer["restored_subscriptions"] == {"stock": ["B", str(number)]}


async def test_another_server_restores_every_option(redis_url: str) -> None:
    """The bandwidth too, unless the new connection has named its own."""
    async with running_server(redis=redis_url) as first, running_server(redis=redis_url) as second:
        options = {"kinds": ["orderbook"], "max_rate": 50, "delta": True, "depth": 5}
        async with connected(first) as client:
            await client.subscribe("stock:A", max_bandwidth=2000, **options)
        for own, expected in ((None, 2000), (5000, 5000), (0, 0)):
            async with connected(second) as elsewhere:
                if own is not None:
                    await elsewhere.request(type="options", max_bandwidth=own)
                await elsewhere.request(
                    type="reconnect", session_id=client.session_id, positions={}
                )
                await elsewhere.send(type="options")
                while (answer := await elsewhere.receive())["type"] != "options":
                    assert answer["type"] == "gap"  # the other server's positions are its own
                assert answer["max_bandwidth"] == expected
                (session,) = second._acceptor.sessions.values()
                (subscription,) = session.outbox.subscriptions.values()
                assert subscription.lane.kinds == {Kind.ORDERBOOK}
                assert subscription.lane.detail == Detail(delta=True, depth=5)
                assert subscription.interval_seconds == pytest.approx(0.02)


def test_last_values_that_are_not_confirmed_are_kept_in_a_record() -> None:
    """With the position up to which they were sent, which may be another epoch's."""
    held = [
        HeldSubscription(
            topic, Mode.LATEST, topic.kind_set, 0.0, Position("e", 7), unconfirmed=sent
        )
        for topic, sent in [
            (STOCK, None),
            (Topic.parse("stock:B"), SentSnapshots(frozenset({Kind.PRICE}), 7)),
            (Topic.parse("stock:C"), SentSnapshots(frozenset(STOCK.kinds), 2)),
        ]
    ]
    record = SessionRecord("s", held)
    assert decode_record(encoded(record)) == record


def test_a_bandwidth_is_kept_in_a_record() -> None:
    """One that no client can have asked for is refused."""
    record = SessionRecord("s", [], max_bandwidth=2000.0)
    assert decode_record(encoded(record)) == record
    with pytest.raises(ValueError, match="bandwidth"):
        decode_record(encoded(attrs.evolve(record, max_bandwidth=-1.0)))


@pytest.mark.parametrize(
    "encoded",
    [b"", b"{", b"\xff", b"[]", b"7", b'{"session_id": "s"}'],
    ids=["empty", "no JSON", "no text", "a list", "a number", "parts missing"],
)
async def test_a_record_that_another_version_wrote_counts_as_none(
    encoded: bytes, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """The session is not restored, and a log line says why."""
    store.encoded["s"] = encoded
    with structlog.testing.capture_logs() as logs:
        assert await House(store).sessions.load("s") is None
    assert {line["event"] for line in logs} == {"session record not understood"}


async def test_a_session_belongs_to_its_user(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """While it lives, after its end, and on another server, which has it from the store."""
    other = House(store)
    outbox = house.connect("one", Want(STOCK))
    outbox.user_id = "ann"
    await trio.sleep(1)
    for ended in (False, True):
        if ended:
            house.disconnect("one")
            await trio.sleep(1)
        for place in (house, other):
            assert topics(await place.sessions.load("one", "ann")) == ["stock:A"]
            assert await place.sessions.load("one", "bob") is None
            assert await place.sessions.load("one", None) is None


async def test_a_session_of_another_takes_as_long_as_none(
    store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """The time of the answer does not say that the session exists."""
    house = House(store)
    house.connect("one", Want(STOCK)).user_id = "ann"
    house.disconnect("one")
    await house.sessions.save()
    taken = []
    for session_id in ("one", "none"):
        began_at = trio.current_time()
        assert await house.sessions.load(session_id, "bob") is None
        taken.append(trio.current_time() - began_at)
    assert taken[0] == taken[1] > 0


async def test_an_anonymous_session_is_restored_by_whoever_knows_it(house: House) -> None:
    """A client may present a token between two connections; the topics are judged anew."""
    house.connect("one", Want(STOCK))
    house.disconnect("one")
    for user_id in (None, "ann"):
        assert topics(await house.sessions.load("one", user_id)) == ["stock:A"]


def test_a_record_without_an_owner_is_of_an_anonymous_client() -> None:
    """Servers before identities wrote none; those after them write the user."""
    record = SessionRecord("s", [], user_id="ann")
    assert decode_record(encoded(record)) == record
    old = decode_record(b'{"session_id": "s", "groups": [], "ended": true}')
    assert old == SessionRecord("s", [], ended=True)
    assert b"user_id" not in encoded(old)
