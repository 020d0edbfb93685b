"""The waiting messages of a client that is behind, when its subscriptions change."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import pytest
from wsproto.frame_protocol import FrameProtocol, Opcode

from streamer.hub.backlog import Backlog
from streamer.hub.fanout import FlushProgress
from streamer.hub.outbox import (
    RENDERED_BYTES_PER_TURN,
    REPLAY_PORTION_BYTES,
    REPLAYED_PER_TURN,
    Outbox,
)
from streamer.hub.recovery import RecoveryPlan, subscribe
from streamer.hub.renditions import WHOLE, Detail
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.protocol.messages import GapReason, Mode, Position
from streamer.protocol.topics import Kind, Topic
from streamer.wire.json import WebSocketJson
from tests.hub.test_history import STOCK, House

PRICE = frozenset({Kind.PRICE})
ORDERBOOK = frozenset({Kind.ORDERBOOK})
BOTH = PRICE | ORDERBOOK


class Behind:
    """A client without a socket: what it is sent is taken by hand."""

    def __init__(self, house: House, *, max_queued_bytes: int = 1 << 20) -> None:
        self.house = house
        self.hub = house.hub
        wire = WebSocketJson(lambda: "2026-01-02T03:04:05.678Z")
        self.outbox = Outbox("client", -1, self, wire, max_queued_bytes=max_queued_bytes)
        self.hub.add(self.outbox)

    def on_blocked(self) -> None:
        """A writer task would start; `received` does what it does."""

    def on_broken(self) -> None:
        """Nothing breaks."""
        raise AssertionError

    on_overflow = on_broken

    def subscribe(self, kinds: frozenset[Kind], *, snapshot: bool = True) -> RecoveryPlan:
        """Subscribe to the stock; its answer is not among what is `received`."""
        want = Want(STOCK, SubscriptionOptions(Mode.LATEST, kinds, snapshot=snapshot))
        return subscribe(self.hub, self.outbox, [want], max_replay_bytes=0)

    def fall_behind(self) -> None:
        """Begin a write that is not over."""
        self.outbox.send_control(b"")
        self.outbox.hold(b"\x89\x00", 0, 0)

    def publish(self, kind: Kind) -> int:
        """Publish and flush; returns the sequence."""
        stream = self.hub.stream(STOCK)
        self.hub.publishing.publish(stream, kind, b'{"kind":"%b"}' % kind.encode())
        self.flush()
        return stream.sequence

    def flush(self) -> None:
        """A whole flush."""
        for _ in self.hub.fanout.flush(FlushProgress(), stretched=False):
            pass

    def received(self) -> list[dict[str, Any]]:
        """Everything that waits, batches unpacked."""
        frames = FrameProtocol(client=True, extensions=[])
        while data := bytes(self.outbox.take(self.house.now)[0]):
            frames.receive_bytes(data)
        self.outbox.unblock()
        received: list[dict[str, Any]] = []
        for frame in frames.received_frames():
            if frame.opcode is Opcode.TEXT:
                message = json.loads(str(frame.payload))
                received += message.get("messages", [message])
        return received


@pytest.fixture(name="client")
def behind() -> Behind:
    """A client that holds nothing yet."""
    return Behind(House())


def short(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Kind, sequence, `previous` and whether it is a snapshot."""
    return [
        (m.get("kind"), m["sequence"], m.get("previous"), m.get("snapshot", False))
        for m in messages
    ]


def test_kinds_that_were_given_up_are_not_sent_any_more(client: Behind) -> None:
    """Though they waited already when the client narrowed its subscription."""
    client.subscribe(BOTH)
    client.fall_behind()
    client.publish(Kind.PRICE)
    client.publish(Kind.ORDERBOOK)
    plan = client.subscribe(PRICE)
    assert plan.positions[STOCK].sequence == 0
    client.publish(Kind.ORDERBOOK)
    client.publish(Kind.PRICE)
    assert short(client.received()) == [("price", 4, 0, False)]
    statistics = client.outbox.statistics()
    assert statistics.dropped == {"unsubscribed": 1}


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_value_that_a_client_has_is_not_sent_again_as_a_message(
    client: Behind, snapshot: bool
) -> None:
    """It narrows its kinds, falls behind, and widens them again: at the most, a snapshot comes."""
    client.subscribe(BOTH)
    client.fall_behind()
    client.publish(Kind.PRICE)
    client.publish(Kind.ORDERBOOK)
    assert [m[1] for m in short(client.received())] == [1, 2]
    plan = client.subscribe(PRICE)
    assert plan.positions[STOCK].sequence == 2, "a position never goes back"
    client.fall_behind()
    client.publish(Kind.PRICE)
    plan = client.subscribe(BOTH, snapshot=snapshot)
    assert plan.positions[STOCK].sequence == 2
    assert [p.sequence for p in plan.snapshots] == ([2] if snapshot else [])
    assert short(client.received()) == [("price", 3, None, False)]


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_value_that_a_client_lacks_waits_only_if_it_is_wanted(
    client: Behind, snapshot: bool
) -> None:
    """It was published while the client did not ask for its kind."""
    client.subscribe(PRICE)
    client.fall_behind()
    client.publish(Kind.ORDERBOOK)
    client.publish(Kind.PRICE)
    assert client.subscribe(BOTH, snapshot=snapshot).snapshots == []
    expected = [("orderbook", 1, None, False), ("price", 2, None, False)]
    assert short(client.received()) == (expected if snapshot else [("price", 2, 0, False)])


def test_after_a_gap_come_the_last_values_of_the_kinds_asked_for() -> None:
    """And of no others, to clients in a group and alone alike."""
    house = House()
    narrow, wide = Behind(house), Behind(house)
    narrow.subscribe(PRICE)
    wide.subscribe(BOTH)
    stream = house.hub.stream(STOCK)
    latest = [
        (Kind.ORDERBOOK, 6, b'{"kind":"orderbook","sequence":6}'),
        (Kind.PRICE, 7, b'{"kind":"price","sequence":7}'),
    ]
    position = Position("next", 7)
    house.hub.publishing.start_epoch(stream, GapReason.SOURCE_RECONNECTED, position, latest)
    narrow.flush()
    gap = (None, 7, None, False)
    assert short(narrow.received()) == [gap, ("price", 7, None, True)]
    assert short(wide.received()) == [gap, ("orderbook", 6, None, True), ("price", 7, None, True)]


def test_a_widened_subscription_gets_last_values_behind_the_gap_that_waits(
    client: Behind,
) -> None:
    """They were known when the stream resumed, so they are no messages that follow the gap."""
    client.subscribe(PRICE)
    client.fall_behind()
    stream = client.hub.stream(STOCK)
    latest = [(Kind.ORDERBOOK, 6, b'{"kind":"orderbook","sequence":6}')]
    client.hub.publishing.start_epoch(
        stream, GapReason.SOURCE_RECONNECTED, Position("next", 7), latest
    )
    client.publish(Kind.PRICE)
    client.subscribe(BOTH)
    assert short(client.received()) == [
        (None, 7, None, False),
        ("orderbook", 6, None, True),
        ("price", 8, None, False),
    ]
    client.publish(Kind.PRICE)
    assert short(client.received()) == [("price", 9, None, False)]


def test_only_what_is_due_is_looked_at() -> None:
    """With 200 topics with a rate, a flush of one does not look at the others that wait."""
    house = House()
    client = Behind(house)
    topics = [Topic.parse(f"stock:{number}") for number in range(200)]
    rarely = SubscriptionOptions(interval_seconds=60.0)
    wants = [Want(topic, rarely) for topic in topics]
    house.hub.subscribe(client.outbox, wants)
    for _ in range(2):
        for topic in topics:
            house.hub.publishing.publish(house.hub.stream(topic), Kind.PRICE, b'{"kind":"price"}')
        client.flush()
        client.received()
    assert len(client.outbox.backlog) == 200
    house.hub.publishing.publish(house.hub.stream(topics[7]), Kind.PRICE, b'{"kind":"price"}')
    client.flush()
    assert client.outbox.backlog.take(house.now) == []
    assert house.hub.fanout.due_seconds == 60.0
    house.now = 60.0
    received = client.received()
    assert len(received) == 200
    assert house.hub.fanout.due_seconds in {None, 60.0}


def test_a_client_that_ends_is_cleared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of its topics."""
    house = House()
    client = Behind(house)
    topics = [Topic.parse(f"stock:{number}") for number in range(50)]
    house.hub.subscribe(client.outbox, [Want(t, SubscriptionOptions(Mode.ALL)) for t in topics])
    client.fall_behind()
    for topic in topics:
        house.hub.publishing.publish(house.hub.stream(topic), Kind.PRICE, b'{"kind":"price"}')
    client.flush()
    calls = 0
    discard = Backlog.discard

    def count(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        return discard(*arguments)

    monkeypatch.setattr(Backlog, "discard", count)
    house.hub.retire(client.outbox, "too slow")
    assert calls <= 1
    assert client.outbox.statistics().dropped == {"too slow": 50}
    assert not client.outbox.subscriptions
    assert house.hub.statistics().subscriptions_by_type["stock"] == 0


def test_options_of_many_topics_change_in_one_look_at_what_waits(
    client: Behind,
) -> None:
    """Thousands of messages may wait: a look for each topic would hold up all other clients."""
    house = client.house
    topics = [Topic.parse(f"stock:{number}") for number in range(50)]
    house.hub.subscribe(client.outbox, [Want(t, SubscriptionOptions(Mode.ALL)) for t in topics])
    client.fall_behind()
    for topic in topics:
        for kind in Kind.PRICE, Kind.ORDERBOOK:
            text = b'{"kind":"%b"}' % kind.encode()
            house.hub.publishing.publish(house.hub.stream(topic), kind, text)
    client.flush()

    class Counted(dict[Any, Any]):
        looks = 0

        def items(self) -> Any:
            self.looks += 1
            return super().items()

        def values(self) -> Any:
            self.looks += 1
            return super().values()

    waiting = client.outbox.backlog._pending = Counted(client.outbox.backlog._pending)
    options = SubscriptionOptions(Mode.LATEST, ORDERBOOK)
    house.hub.subscribe(client.outbox, [Want(topic, options) for topic in topics])
    assert waiting.looks == 1
    assert short(client.received()) == [("orderbook", 2, 0, False)] * 50
    assert client.outbox.statistics().dropped == {"unsubscribed": 50}


@pytest.mark.parametrize("detail", [WHOLE, Detail(depth=1)])
def test_a_long_replay_is_sent_in_portions_although_the_socket_takes_more(detail: Detail) -> None:
    """A client that reads takes megabytes of it at once: all others would wait meanwhile."""
    house = House(history_length=4 * REPLAYED_PER_TURN)
    size = 40 if detail is WHOLE else REPLAY_PORTION_BYTES // 2
    count = 4 * REPLAYED_PER_TURN if detail is WHOLE else 6
    house.publish(STOCK, count, size=size)
    written: list[int] = []

    def take_all(_: int, data: bytes | memoryview) -> int:
        written.append(len(data))
        return len(data)

    owner = Behind(house)
    outbox = Outbox(
        "reads", 0, owner, WebSocketJson(lambda: ""), max_queued_bytes=1 << 20, write=take_all
    )
    house.hub.add(outbox)
    since = Position(house.hub.stream(STOCK).epoch, 0)
    want = Want(STOCK, SubscriptionOptions(Mode.ALL, detail=detail), since)
    subscribe(house.hub, outbox, [want], max_replay_bytes=1 << 20)
    house.hub.fanout.start_replays(outbox)
    steps = 1
    while outbox.blocked:  # as the writer task does
        assert len(written) == steps
        house.hub.fanout.resume(outbox)
        steps += 1
    assert steps >= 3
    assert outbox.statistics().replayed == count
    owner.flush()
    assert house.hub.statistics().groups == 1


@pytest.mark.parametrize("interval_seconds", [0.0, 1.0])
def test_what_waits_is_rendered_in_portions(interval_seconds: float) -> None:
    """Books of hundreds of topics may wait, and each is compared with the one before it."""
    house = House()
    topics = [Topic.parse(f"stock:{number}") for number in range(6)]
    written: list[int] = []

    def take_all(_: int, data: bytes | memoryview) -> int:
        written.append(data.count(b'"previous"') if isinstance(data, bytes) else 0)
        return len(data)

    owner = Behind(house)
    outbox = Outbox(
        "renders", 0, owner, WebSocketJson(lambda: ""), max_queued_bytes=1 << 20, write=take_all
    )
    house.hub.add(outbox)
    options = SubscriptionOptions(
        Mode.LATEST, detail=Detail(depth=1), interval_seconds=interval_seconds
    )
    house.hub.subscribe(outbox, [Want(topic, options) for topic in topics])
    owner.flush()
    house.hub.fanout.leave(outbox)
    outbox.hold(b"a frame that the socket has not taken", 0, 0)
    for topic in topics:
        house.publish(topic, 2, size=RENDERED_BYTES_PER_TURN // 2)
    owner.flush()
    house.now += interval_seconds
    steps = 0
    while outbox.blocked:  # as the writer task does
        house.hub.fanout.resume(outbox)
        steps += 1
    assert written == [0, 2, 2, 2]
    assert steps == 3
    account = outbox.statistics()
    assert (account.delivered, account.conflated, account.queued_bytes) == (6, 6, 0)


@pytest.mark.parametrize("interval_seconds", [0.0, 1.0])
def test_states_in_portions_do_not_crowd_out_an_event(interval_seconds: float) -> None:
    """Newer states may replace those that wait: a client in mode latest that reads is kept."""
    house = House()
    topics = [Topic.parse(f"stock:{number}") for number in range(6)]
    market = Topic.parse("market:KOSPI")
    owner = Behind(house)  # an overflow is an error
    outbox = Outbox(
        "reads",
        0,
        owner,
        WebSocketJson(lambda: ""),
        max_queued_bytes=RENDERED_BYTES_PER_TURN,
        write=lambda _, data: len(data),
    )
    house.hub.add(outbox)
    options = SubscriptionOptions(
        Mode.LATEST, detail=Detail(depth=1), interval_seconds=interval_seconds
    )
    house.hub.subscribe(outbox, [Want(topic, options) for topic in topics])
    house.hub.subscribe(outbox, [Want(market)])
    for _ in range(2):
        house.hub.fanout.leave(outbox)  # a group is written to in another way
        for topic in topics:
            house.publish(topic, 1, size=RENDERED_BYTES_PER_TURN // 2)
        house.now += interval_seconds
        owner.flush()
        assert outbox.blocked, "the rest of the portions waits"
        assert outbox.statistics().queued_bytes == 0
        house.publish(market, 1, kind=Kind.STATUS)
        owner.flush()
        while outbox.blocked:
            house.hub.fanout.resume(outbox)
    account = outbox.statistics()
    assert (account.delivered, account.conflated, account.dropped) == (14, 0, {})


@pytest.mark.parametrize("interval_seconds", [0.0, 1.0])
def test_last_known_values_of_a_client_that_is_behind_are_replaced(interval_seconds: float) -> None:
    """After one gap and the next, only the newest wait: they need no bound, and close nobody."""
    client = Behind(House(), max_queued_bytes=1000)
    options = SubscriptionOptions(Mode.LATEST, BOTH, interval_seconds=interval_seconds)
    subscribe(client.hub, client.outbox, [Want(STOCK, options)], max_replay_bytes=0)
    stream = client.hub.stream(STOCK)
    client.fall_behind()
    client.publish(Kind.PRICE)
    for number in range(1, 4):
        values = [(Kind.PRICE, 1, b'{"kind":"price","sequence":1,"pad":"%b"}' % (b"x" * 2000))]
        position = Position(f"epoch-{number}", 1)
        client.hub.publishing.start_epoch(stream, GapReason.SOURCE_RECONNECTED, position, values)
        client.flush()
    assert client.outbox.statistics().queued_bytes < 1000
    client.house.now += 1
    epochs = [message.get("epoch") for message in client.received()]
    assert [epoch for epoch in epochs if epoch] == ["epoch-1", "epoch-2", "epoch-3"]
    assert epochs[-1] is None
    account = client.outbox.statistics()
    assert (account.delivered + account.conflated, account.queued_bytes) == (7, 0)


def test_a_gap_and_its_values_are_in_one_portion() -> None:
    """Whoever has received the gap, and resumes there, is not sent the values again."""
    house = House()
    topics = [Topic.parse(f"stock:{number}") for number in range(4)]
    client = Behind(house)
    options = SubscriptionOptions(Mode.LATEST, detail=Detail(depth=1))
    house.hub.subscribe(client.outbox, [Want(topic, options) for topic in topics])
    client.fall_behind()
    pad = b"x" * RENDERED_BYTES_PER_TURN
    for topic in topics:
        values = [
            (Kind.PRICE, 1, b'{"sequence":1,"pad":"%b"}' % pad),
            (Kind.ORDERBOOK, 2, b'{"bids":[],"asks":[],"sequence":2}'),
        ]
        house.hub.publishing.start_epoch(
            house.hub.stream(topic), GapReason.SOURCE_RECONNECTED, Position("next", 2), values
        )
    client.flush()
    client.outbox.take(house.now)  # the rest of the write that has filled the socket
    sizes = []
    while data := client.outbox.take(house.now)[0]:
        sizes.append((bytes(data).count(b'"gap"'), bytes(data).count(b'"snapshot":true')))
    assert sizes == 4 * [(1, 2)]


def test_a_client_that_lacks_nothing_is_sent_the_last_values(client: Behind) -> None:
    """Also while changes of an unknown book are left out, which raise the sequence alone."""
    client.subscribe(BOTH)
    client.publish(Kind.PRICE)
    client.received()
    stream = client.hub.stream(STOCK)
    client.hub.publishing.leave_out(stream, 2)
    plan = client.subscribe(BOTH)
    assert [value.sequence for value in plan.snapshots] == [1]
    ((_, known),) = client.hub.resync(client.outbox, [STOCK])
    assert [value.sequence for value in known] == [1]
    client.hub.publishing.publish(stream, Kind.PRICE, b'{"kind":"price"}')
    ((_, known),) = client.hub.resync(client.outbox, [STOCK])
    assert known == [], "the next flush has a newer one"


def test_a_gap_that_waits_while_its_epoch_is_renamed(client: Behind) -> None:
    """The client is then in the epoch by its new name, like all others."""
    client.subscribe(BOTH)
    stream = client.hub.stream(STOCK)
    client.fall_behind()
    client.hub.publishing.start_epoch(
        stream, GapReason.SOURCE_RECONNECTED, Position(client.hub.publishing.new_epoch(), 0)
    )
    client.flush()
    client.hub.publishing.rename_epoch(stream, "of the producers")
    client.received()
    (subscription,) = client.outbox.subscriptions.values()
    assert subscription.epoch == "of the producers"
    assert subscription.caught_up


def test_a_write_is_never_cut_by_an_answer() -> None:
    """The rest of a frame comes before answers, and these before anything that waits."""
    house = House()
    server_end, client_end = socket.socketpair()
    with server_end, client_end:
        server_end.setblocking(False)
        wire = WebSocketJson(lambda: "")
        owner = Behind(house)
        outbox = Outbox("plain", server_end.fileno(), owner, wire, max_queued_bytes=1 << 20)
        outbox.write(b"x" * (1 << 22))
        assert outbox.blocked
        outbox.send_control(b"answer")
        outbox.write(b"frame")
        received = b""
        while not received.endswith(b"answer"):
            received += os.read(client_end.fileno(), 1 << 20)
            outbox.flush(0.0)
        assert received == b"x" * (1 << 22) + b"frame" + b"answer"
