"""Deltas and depths: what a client is sent, from which it rebuilds what was published."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.hub.fanout import FlushProgress
from streamer.hub.outbox import RENDERED_BYTES_PER_TURN
from streamer.hub.publication import Publication
from streamer.hub.recovery import subscribe
from streamer.hub.renditions import Detail, Renditions
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.protocol.deltas import delta_text
from streamer.protocol.messages import GapReason, Mode, Position
from streamer.protocol.topics import Kind, Topic
from tests.helpers.rebuild import content, cut, read_exactly, rebuilt
from tests.hub.listener import WIRE, Listener, listening
from tests.hub.test_history import STOCK, STOCKS, House
from tests.protocol.books import levels_text, side_texts

DELTA = Detail(delta=True)

Levels = list[tuple[str, str]]

LADDER: Levels = [(str(100 + n), "1") for n in range(5)]


slow_reader = partial(listening, send_buffer_bytes=1)


def book(asks: Levels, *, bids: Levels = [], more: str = "") -> bytes:  # noqa: B006
    """An order book of stock A."""
    sides = f'"bids":{levels_text(bids)},"asks":{levels_text(asks)}'
    return (
        f'{{"type":"orderbook_update","stock_code":"A","timestamp":"t",{sides}{more}}}'
    ).encode()


def numbered(count: int) -> Iterator[bytes]:
    """Books that differ in one level from each other."""
    for number in range(1, count + 1):
        yield book([*LADDER, ("200", str(number))])


def publish(house: House, *books: bytes, kind: Kind = Kind.ORDERBOOK) -> None:
    """Publish messages of stock A."""
    stream = house.hub.stream(STOCK)
    for text in books:
        house.hub.publishing.publish(stream, kind, text)


def shown(message: dict[str, Any]) -> tuple[str, int, int | None]:
    """The type of a message, its sequence and what it follows."""
    return message["type"], message["sequence"], message.get("previous")


def stall(client: Listener) -> None:
    """Fill the client's socket, so that all that follows waits."""
    while not client.outbox.blocked:
        client.outbox.write(WIRE.ping(b"x" * 125))


def read_on(client: Listener) -> list[dict[str, Any]]:
    """Read until nothing waits any more."""
    received: list[dict[str, Any]] = []
    while client.outbox.blocked:
        received += client.heard()
        client.hub.fanout.resume(client.outbox)
    return received + client.heard()


def test_after_a_whole_book_come_its_changes() -> None:
    """The first is whole, as is one whose delta would not be smaller."""
    house = House()
    with slow_reader(house.hub) as client:
        client.subscribe(STOCK, detail=DELTA)
        publish(house, *numbered(3), book([("1", "1")]))
        assert [shown(message) for message in client.heard()] == [
            ("orderbook_update", 1, None),
            ("orderbook_delta", 2, None),
            ("orderbook_delta", 3, None),
            ("orderbook_update", 4, None),
        ]


def test_a_stalled_client_gets_one_delta_from_what_it_holds() -> None:
    """From 2 to 9 in one delta, with `previous`, while its neighbour is sent each."""
    house = House()
    books = list(numbered(9))
    with slow_reader(house.hub) as slow, slow_reader(house.hub) as fast:
        for client in (slow, fast):
            client.subscribe(STOCK, mode=Mode.LATEST, detail=DELTA)
        publish(house, books[0])
        (first,) = slow.heard()
        fast.heard()
        stall(slow)
        for text in books[1:]:
            publish(house, text)
            assert [message["type"] for message in fast.heard()] == ["orderbook_delta"]
        # The frame of the second book was made for its group before it became known to be full.
        second, last = read_on(slow)
        assert shown(last) == ("orderbook_delta", 9, 2)
        held = rebuilt(rebuilt(content(first), second), last)
        assert held == content(read_exactly(books[-1]))


def test_a_delta_is_made_once_for_all_with_the_same_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups and out of them, plain and conflated."""
    made: list[bytes | None] = []
    make = delta_text

    def counted(*arguments: Any) -> bytes | None:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr("streamer.hub.renditions.delta_text", counted)
    house = House()
    with (
        slow_reader(house.hub) as one,
        slow_reader(house.hub) as two,
        slow_reader(house.hub) as stalled,
        slow_reader(house.hub) as as_slow,
    ):
        clients = [one, two, stalled, as_slow]
        for client in clients:
            client.subscribe(STOCK, mode=Mode.LATEST, detail=DELTA)
        texts = list(numbered(4))
        publish(house, texts[0])
        for client in clients:
            client.heard()
        assert house.hub.statistics().groups == 1
        stall(stalled)
        stall(as_slow)
        for text in texts[1:]:
            publish(house, text)
            one.flush()
        assert len(made) == 3, "from 1 to 2, 2 to 3, 3 to 4"
        assert read_on(stalled) == read_on(as_slow) != []
        assert len(made) == 4, "from 2 to 4"
        assert one.heard() == two.heard()


def test_a_client_without_a_snapshot_is_sent_a_whole_message_first() -> None:
    """It has no base, though its neighbours have; then it joins them."""
    house = House()
    texts = list(numbered(3))
    with slow_reader(house.hub) as old, slow_reader(house.hub) as new:
        old.subscribe(STOCK, detail=DELTA)
        publish(house, texts[0])
        old.heard()
        want = Want(STOCK, SubscriptionOptions(Mode.ALL, detail=DELTA, snapshot=False))
        subscribe(house.hub, new.outbox, [want], max_replay_bytes=0)
        publish(house, texts[1])
        assert shown(old.heard()[0]) == ("orderbook_delta", 2, None)
        assert shown(new.heard()[0]) == ("orderbook_update", 2, None)
        publish(house, texts[2])
        assert old.heard() == new.heard() != []
        assert house.hub.statistics().groups == 1


@pytest.mark.parametrize("is_behind", [False, True])
def test_after_a_second_subscribe_the_first_message_is_whole(is_behind: bool) -> None:
    """Though the options are the same: unless a snapshot was sent, which is a base."""
    house = House()
    texts = list(numbered(5))
    with slow_reader(house.hub) as client, slow_reader(house.hub) as neighbour:
        for listener in (client, neighbour):
            listener.subscribe(STOCK, detail=DELTA)
        publish(house, *texts[:2])
        client.heard()
        if is_behind:
            stall(client)
            for text in texts[2:4]:
                publish(house, text)
                neighbour.heard()
        want = Want(STOCK, SubscriptionOptions(Mode.ALL, detail=DELTA, snapshot=is_behind))
        plan = subscribe(house.hub, client.outbox, [want], max_replay_bytes=0)
        assert not plan.snapshots
        publish(house, texts[4])
        # The third book, where there is one, was on its way before the client was known to be full.
        known = 3 if is_behind else 2
        received = [message["type"] for message in read_on(client) if message["sequence"] > known]
        assert received[0] == "orderbook_update"
        assert received[1:] == ["orderbook_delta"] * is_behind
        assert neighbour.heard()[-1]["type"] == "orderbook_delta"


def test_missed_messages_begin_with_a_whole_message() -> None:
    """A client that returns is sent one book whole, and the rest as deltas."""
    house = House()
    publish(house, *numbered(4))
    with slow_reader(house.hub) as client:
        client.recover(STOCK, Position(house.hub.stream(STOCK).epoch, 1), detail=DELTA)
        assert [shown(message) for message in client.heard()] == [
            ("orderbook_update", 2, None),
            ("orderbook_delta", 3, None),
            ("orderbook_delta", 4, None),
        ]


def test_after_a_gap_comes_a_whole_message() -> None:
    """The base of a delta may be out of date."""
    house = House()
    texts = list(numbered(3))
    with slow_reader(house.hub) as client:
        client.subscribe(STOCK, detail=DELTA)
        stream = house.hub.stream(STOCK)
        publish(house, *texts[:2])
        house.hub.publishing.start_epoch(stream, GapReason.SOURCE_RECONNECTED, Position("new", 0))
        publish(house, texts[2])
        assert [message["type"] for message in client.heard()] == [
            "orderbook_update",
            "orderbook_delta",
            "gap",
            "orderbook_update",
        ]


def test_after_a_gap_the_last_value_is_a_base() -> None:
    """It is sent whole after the gap, at the client's depth, and the next book is a delta of it."""
    house = House()
    with slow_reader(house.hub) as client:
        client.subscribe(STOCK, detail=Detail(delta=True, depth=3))
        stream = house.hub.stream(STOCK)
        latest = [(Kind.ORDERBOOK, 4, book(LADDER, more=',"sequence":4'))]
        reason = GapReason.SOURCE_RECONNECTED
        house.hub.publishing.start_epoch(stream, reason, Position("new", 4), latest)
        publish(house, book([("99", "1"), *LADDER]))
        _, snapshot, delta = client.heard()
        assert snapshot["snapshot"]
        assert len(snapshot["asks"]) == 3
        assert shown(delta) == ("orderbook_delta", 5, None)
        assert [(level["price"], level["quantity"]) for level in delta["asks"]] == [
            (99, 1),
            (102, 0),
        ]


def test_a_depth_without_deltas_cuts_books() -> None:
    """Prices and smaller books are as they were published."""
    house = House()
    small = book([("1.50", "1")])
    with slow_reader(house.hub) as client:
        client.subscribe(STOCK, detail=Detail(depth=2))
        publish(house, book(LADDER), small)
        publish(house, b'{"price":1}', kind=Kind.PRICE)
        house.hub.fanout.catch_up(client.outbox)
        received = client.heard()
        assert [len(message.get("asks", ())) for message in received] == [2, 1, 0]
        assert b'"price":1.50' in small


@pytest.mark.parametrize("leaves", [False, True])
def test_a_flush_renders_in_portions_after_what_needs_no_rendering(*, leaves: bool) -> None:
    """The books of one client must not hold up all others; one that leaves is sent its rest."""
    house = House()
    text = book(LADDER, more=f',"pad":"{"x" * RENDERED_BYTES_PER_TURN}"')
    with slow_reader(house.hub) as renders, slow_reader(house.hub) as plain:
        for stock in STOCKS:
            renders.subscribe(stock, detail=Detail(depth=2))
            plain.subscribe(stock)
        for stock in STOCKS:
            house.hub.publishing.publish(house.hub.stream(stock), Kind.ORDERBOOK, text)
        both = (renders.outbox, plain.outbox)
        flush = house.hub.fanout.flush(FlushProgress(), stretched=False)
        next(flush)
        assert [outbox.blocked for outbox in both] == [False, True]  # as soon as it is written to
        if leaves:
            house.hub.fanout.leave(renders.outbox)
            assert [outbox.blocked for outbox in both] == [True, True]
        turns = len(list(flush))  # large frames end a turn, too
        assert leaves or turns >= len(STOCKS) - 1
        assert [outbox.account[1] for outbox in both] == [len(STOCKS)] * 2


def test_options_that_mean_nothing_to_a_topic_do_not_divide_its_clients() -> None:
    """Clients of a market's status are one group, whatever they ask for books."""
    house = House()
    market = Topic.parse("market:M")
    with slow_reader(house.hub) as one, slow_reader(house.hub) as two:
        one.subscribe(market, detail=Detail(delta=True, depth=5))
        two.subscribe(market)
        assert house.hub.statistics().groups == 1
        one.subscribe(STOCKS[1], Kind.PRICE, detail=Detail(depth=5))
        two.subscribe(STOCKS[1], Kind.PRICE)
        assert house.hub.statistics().groups == 1


def test_options_that_nobody_has_any_more_cost_the_flush_nothing() -> None:
    """A client that asks for one depth after the other leaves nothing for each flush to cut."""
    house = House()
    stream = house.hub.stream(STOCK)
    with slow_reader(house.hub) as other, slow_reader(house.hub) as client:
        other.subscribe(STOCK)
        for depth in range(1, 20):
            client.subscribe(STOCK, detail=Detail(delta=True, depth=depth))
            assert len(stream.lanes) == 2
        house.hub.unsubscribe(client.outbox, [STOCK])
        assert len(stream.lanes) == 1
        client.subscribe(STOCK, detail=Detail(delta=True, depth=3))
        publish(house, *numbered(2))
        assert [shown(message) for message in client.heard()] == [
            ("orderbook_update", 1, None),
            ("orderbook_delta", 2, None),
        ]


def test_a_sector_has_deltas_between_prices_of_one_stock() -> None:
    """Each names the sector, since the message alone does not."""
    house = House()
    sector = Topic.parse("sector:s")
    with slow_reader(house.hub) as client:
        client.subscribe(sector, detail=DELTA)
        stream = house.hub.stream(sector)
        for stock in "AAB":
            members = f'"price":{stream.sequence},"change":0,"change_percent":0,"volume":12345'
            text = f'{{"type":"price_update","stock_code":"{stock}",{members}}}'
            house.hub.publishing.publish(stream, Kind.PRICE, text.encode())
        received = client.heard()
        assert [message["type"] for message in received] == [
            "price_update",
            "price_delta",
            "price_update",
        ]
        assert all(message["target"] == "s" for message in received)


def test_a_resync_sends_what_the_next_delta_changes() -> None:
    """That is not the newest, where newer ones wait for the client."""
    house = House()
    texts = list(numbered(5))
    with slow_reader(house.hub) as client:
        client.subscribe(STOCK, mode=Mode.LATEST, detail=DELTA)
        publish(house, texts[0])
        client.heard()
        stall(client)
        publish(house, texts[1])
        client.flush()
        publish(house, *texts[2:])
        client.flush()
        ((lane, known),) = house.hub.resync(client.outbox, [STOCK, STOCKS[1]])
        assert lane.stream.topic == STOCK
        (base,) = [read_exactly(lane.render_whole(one).snapshot_text) for one in known]
        assert (base["sequence"], base["snapshot"]) == (2, True)
        _, delta = read_on(client)
        assert rebuilt(content(base), delta) == content(read_exactly(texts[-1]))
        assert house.hub.statistics().delta_checksum_failures == 1


def test_a_resync_without_deltas_sends_the_last_values() -> None:
    """It is no failure of a delta, and the client stays in its group."""
    house = House()
    with slow_reader(house.hub) as client:
        client.subscribe(STOCK)
        publish(house, *numbered(2))
        client.heard()
        ((_, known),) = house.hub.resync(client.outbox, [STOCK])
        assert [publication.sequence for publication in known] == [2]
        assert house.hub.statistics().delta_checksum_failures == 0
        assert house.hub.statistics().groups == 1


def test_the_cache_is_bounded_by_the_size_of_texts() -> None:
    """A value that was dropped is made again when it is needed."""
    texts = list(numbered(40))
    renditions = Renditions(max_bytes=3 * len(texts[0]))
    publications = [
        Publication(Kind.ORDERBOOK, number, number, text) for number, text in enumerate(texts)
    ]
    rendered = [
        renditions.render(publication, publications[0], DELTA).text
        for publication in publications[1:] * 2
    ]
    assert rendered[:39] == rendered[39:]
    assert all(b"orderbook_delta" in text for text in rendered)
    assert len(renditions._rendered._values) <= 3
    assert len(renditions._contents._values) <= 3


SIDES = st.tuples(side_texts(most=10), side_texts(least=10))


@settings(max_examples=60, deadline=None)
@given(
    books=st.lists(SIDES, min_size=1, max_size=8),
    depth=st.sampled_from([None, 1, 3]),
    stalled=st.sets(st.integers(0, 7)),
    mode=st.sampled_from(Mode),
)
def test_a_client_always_holds_the_book_that_was_published(
    books: list[tuple[Levels, Levels]], depth: int | None, stalled: set[int], mode: Mode
) -> None:
    """After each message, with stalls between, it is the same at the depth and in its checksum."""
    house = House(history_length=100)
    texts = [book(asks, bids=bids[::-1]) for bids, asks in books]
    held: dict[str, Any] = {}
    with slow_reader(house.hub) as client:
        client.subscribe(STOCK, mode=mode, detail=Detail(delta=True, depth=depth))
        for number, text in enumerate(texts):
            publish(house, text)
            if number in stalled:
                if not client.outbox.blocked:
                    stall(client)
                client.flush()
                continue
            for message in read_on(client) if client.outbox.blocked else client.heard():
                is_delta = message["type"] == "orderbook_delta"
                held = rebuilt(held, message) if is_delta else content(message)
                truth = read_exactly(texts[message["sequence"] - 1])
                assert held == content(cut(truth, depth))
        for message in read_on(client):
            held = rebuilt(held, message) if "checksum" in message else content(message)
        assert held == content(cut(read_exactly(texts[-1]), depth))
