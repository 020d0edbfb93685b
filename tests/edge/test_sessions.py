"""restorable sessions, in virtual time: what it knows of them, here and in the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import structlog
import trio
from trio.testing import MockClock

from streamer.edge.sessions import RestorableSessions
from streamer.hub.hub import Hub, SubscriptionRequest
from streamer.hub.outbox import Outbox
from streamer.hub.sessions import SessionRecord, StoreUnavailableError
from streamer.hub.streams import TopicStream
from streamer.hub.wakeup import Wakeup
from streamer.protocol.messages import Mode
from streamer.protocol.topics import Kind, Topic
from streamer.wire.json import WebSocketJson

STOCK = Topic.parse("stock:A")
MARKET = Topic.parse("market:KOSPI")

LIFETIME_SECONDS = 300.0

WIRE = WebSocketJson(lambda: "")


class ScriptedStore:
    """A store that is away when the test says so."""

    def __init__(self) -> None:
        self.away = False
        self.saves: list[list[SessionRecord]] = []
        self.records: dict[str, SessionRecord] = {}

    async def save(self, records: Sequence[SessionRecord]) -> None:
        """Keep these."""
        await self._answer()
        self.saves.append(list(records))
        self.records |= {record.session_id: record for record in records}

    async def load(self, session_id: str) -> SessionRecord | None:
        """Find one."""
        await self._answer()
        return self.records.get(session_id)

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailableError("away")


class House:
    """A hub with clients that are only there, and their restorable sessions."""

    def __init__(self, store: ScriptedStore | None) -> None:
        self.live: dict[str, Outbox] = {}
        self.sessions = RestorableSessions(self.live.get, store, lifetime_seconds=LIFETIME_SECONDS)
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
        """A topic is wanted."""

    def join(self, topic: Topic) -> None:
        """A topic is heard."""

    release = join

    def on_blocked(self) -> None:
        """Nothing is written here."""

    on_broken = on_overflow = on_blocked

    def connect(self, name: str, *requests: SubscriptionRequest) -> Outbox:
        """A client arrives and subscribes."""
        outbox = self.live[name] = Outbox(name, -1, self, WIRE, max_queued_bytes=1000)
        self.hub.add(outbox)
        if requests:
            self.hub.subscribe(outbox, requests)
            self.sessions.changed(name)
        return outbox

    def disconnect(self, name: str) -> None:
        """Its session ends."""
        self.sessions.ended(self.live[name])
        self.hub.remove(self.live.pop(name))


@pytest.fixture
def store() -> ScriptedStore:
    """A store that answers."""
    return ScriptedStore()


@pytest.fixture
async def house(store: ScriptedStore) -> AsyncIterator[House]:
    """One whose session task runs."""
    house = House(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.sessions.run)
        yield house
        nursery.cancel_scope.cancel()


@pytest.fixture
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What is logged, without what is always there."""
    with structlog.testing.capture_logs() as logs:
        yield logs


def topics(record: SessionRecord | None) -> list[str] | None:
    """What a session holds."""
    return None if record is None else [held.topic for held in record.subscriptions]


async def test_a_record_has_all_that_was_asked_for(house: House) -> None:
    """Options and all, whether the client is there or has gone."""
    requests = [
        SubscriptionRequest(STOCK, Mode.ALL, frozenset({Kind.ORDERBOOK})),
        SubscriptionRequest(MARKET, Mode.LATEST, frozenset(), 0.5),
    ]
    house.connect("one", *requests)
    there = await house.sessions.load("one")
    house.disconnect("one")
    gone = await house.sessions.load("one")
    assert there == gone
    assert there is not None
    stock, market = there.subscriptions
    assert (stock.topic, stock.mode, stock.kinds) == ("stock:A", Mode.ALL, [Kind.ORDERBOOK])
    assert (market.topic, market.mode, market.kinds) == ("market:KOSPI", Mode.LATEST, ["status"])
    assert (stock.interval_seconds, market.interval_seconds) == (0.0, 0.5)
    assert stock.confirmed.epoch == house.hub.stream(STOCK).epoch
    assert await house.sessions.load("another") is None


@pytest.mark.parametrize("stored", [False, True])
async def test_a_session_that_has_ended_lives_for_its_lifetime(
    stored: bool, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Not longer, though something of it may still be there (the store forgets by itself)."""
    house = House(store if stored else None)
    house.connect("one", SubscriptionRequest(STOCK))
    house.disconnect("one")
    store.away = True
    await trio.sleep(LIFETIME_SECONDS - 0.1)
    assert topics(await house.sessions.load("one")) == ["stock:A"]
    await trio.sleep(0.1)
    assert await house.sessions.load("one") is None


async def test_what_has_expired_is_forgotten(house: House, autojump_clock: MockClock) -> None:
    """Or each client that ever came would stay in memory."""
    house.connect("one", SubscriptionRequest(STOCK))
    house.connect("two", SubscriptionRequest(STOCK))
    house.disconnect("one")
    await trio.sleep(10)
    house.disconnect("two")
    await trio.sleep(LIFETIME_SECONDS - 8)
    assert list(house.sessions._ended) == ["two"]
    await trio.sleep(10)
    assert not house.sessions._ended


async def test_a_client_without_subscriptions_leaves_nothing_to_restore(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Most that fail come and go like that."""
    house.connect("one")
    house.disconnect("one")
    await trio.sleep(2)
    assert await house.sessions.load("one") is None
    assert store.saves == []


async def test_changes_are_written_together_each_second(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """Once for each client, with what it holds by then; and nothing where nothing has changed."""
    for number in range(3):
        house.connect(f"client {number}", SubscriptionRequest(STOCK))
    house.hub.subscribe(house.live["client 0"], [SubscriptionRequest(MARKET)])
    house.sessions.changed("client 0")
    await trio.sleep(5)
    (saved,) = store.saves
    assert [topics(record) for record in saved] == [
        ["stock:A", "market:KOSPI"],
        ["stock:A"],
        ["stock:A"],
    ]
    house.disconnect("client 1")
    await trio.sleep(5)
    assert [[record.session_id for record in saved] for saved in store.saves[1:]] == [["client 1"]]


async def test_a_flood_of_changes_is_written_in_portions(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """All of them at the same second."""
    for number in range(250):
        house.connect(f"client {number}", SubscriptionRequest(STOCK))
    await trio.sleep(1.5)
    assert [len(saved) for saved in store.saves] == [100, 100, 50]
    assert len(store.records) == 250


async def test_what_the_store_did_not_take_is_written_when_it_is_back(
    house: House,
    store: ScriptedStore,
    logs: list[structlog.typing.EventDict],
    autojump_clock: MockClock,
) -> None:
    """Meanwhile a line says so, and whoever comes back here is restored all the same."""
    store.away = True
    house.connect("one", SubscriptionRequest(STOCK))
    house.disconnect("one")
    await trio.sleep(3.5)
    assert {line["event"] for line in logs} == {"sessions not saved"}
    assert topics(await house.sessions.load("one")) == ["stock:A"]
    logs.clear()
    assert await house.sessions.load("of another server") is None
    assert [line["event"] for line in logs] == ["session not loaded"]
    store.away = False
    await trio.sleep(1)
    assert topics(store.records["one"]) == ["stock:A"]


async def test_sessions_of_other_servers_come_from_the_store(store: ScriptedStore) -> None:
    """Where there is one."""
    first, second, alone = House(store), House(store), House(None)
    first.connect("one", SubscriptionRequest(STOCK))
    await first.sessions.save()
    assert topics(await second.sessions.load("one")) == ["stock:A"]
    assert await alone.sessions.load("one") is None
    await alone.sessions.save()


async def test_a_client_that_is_being_closed_keeps_what_it_held(
    house: House, store: ScriptedStore, autojump_clock: MockClock
) -> None:
    """It holds nothing any more while the farewell is under way, and may be back before its end."""
    outbox = house.connect("one", SubscriptionRequest(STOCK))
    house.sessions.ended(outbox)
    house.hub.retire(outbox, "too slow")
    assert topics(await house.sessions.load("one")) == ["stock:A"]
    await trio.sleep(2)
    house.disconnect("one")
    await trio.sleep(2)
    assert topics(store.records["one"]) == ["stock:A"]
    assert topics(await house.sessions.load("one")) == ["stock:A"]
