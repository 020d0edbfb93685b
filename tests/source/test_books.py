"""Producers may publish changes of an order book: clients receive right books, or a gap."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import pytest
import redis as redis_py
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.hub.renditions import Detail
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import OrderbookDelta, PriceLevel
from streamer.protocol.publications import BookChange, decode_publication
from streamer.protocol.topics import Kind
from streamer.publisher import open_publisher
from streamer.source.books import BookKeeper
from streamer.source.report import SourceReport
from tests.helpers.clients import Client, connected
from tests.helpers.events import fetched
from tests.helpers.publications import price
from tests.helpers.rebuild import Message, content, read_exactly, rebuilt
from tests.helpers.server import publish, running_server
from tests.hub.listener import listening
from tests.hub.test_history import STOCK, House
from tests.protocol.books import NUMBERS, levels_text, side_texts

CHANNEL = "stock:A:orderbook"
Levels = list[tuple[str, str]]


def message(message_type: str, bids: Levels, asks: Levels, more: str = "") -> bytes:
    """An order book of stock A, or changes of one."""
    sides = f'"bids":{levels_text(bids)},"asks":{levels_text(asks)}'
    return f'{{"type":"{message_type}","stock_code":"A",{sides}{more}}}'.encode()


def book(bids: Levels, asks: Levels, more: str = "") -> bytes:
    """A whole order book."""
    return message("orderbook_update", bids, asks, more)


def change(bids: Levels, asks: Levels, more: str = "") -> bytes:
    """Changes of an order book."""
    return message("orderbook_delta", bids, asks, more)


def side(received: Message, name: str) -> list[tuple[float, float]]:
    """The levels of a side."""
    return [(level["price"], level["quantity"]) for level in received[name]]


async def subscribed(client: Client, **options: Any) -> None:
    """Subscribe to stock A."""
    answer = await client.subscribe("stock:A", **options)
    assert answer["type"] == "subscribed"


async def test_each_client_receives_the_book_in_the_form_that_it_asks_for() -> None:
    """Whole without deltas, changes with them, the best levels at a depth; newcomers whole."""
    async with (
        running_server(flush_interval_ms=0) as server,
        connected(server) as plain,
        connected(server) as delta,
        connected(server) as shallow,
        connected(server) as newcomer,
    ):
        await subscribed(plain)
        await subscribed(delta, delta=True)
        await subscribed(shallow, depth=1)
        publish(server, CHANNEL, book([("9.50", "1"), ("9", "2")], [("10", "3")], ',"venue":"X"'))
        publish(server, CHANNEL, change([("9.75", "1.50"), ("9", "0")], [], ',"update_id":7'))
        for client in (plain, delta, shallow):
            await client.data()
        whole, changed, best = [await client.data() for client in (plain, delta, shallow)]
        assert whole["type"] == best["type"] == "orderbook_update"
        assert side(whole, "bids") == [(9.75, 1.5), (9.5, 1)]
        assert (whole["venue"], whole["update_id"], whole["sequence"]) == ("X", 7, 2)
        assert changed["type"] == "orderbook_delta"
        assert side(changed, "bids") == [(9.75, 1.5), (9, 0)]
        assert side(best, "bids") == [(9.75, 1.5)]
        await subscribed(newcomer)
        snapshot = await newcomer.data()
        assert snapshot["snapshot"]
        assert side(snapshot, "bids") == side(whole, "bids")


async def test_a_level_may_have_members_of_any_name() -> None:
    """A name that is no text, which JSON can write, ends no server, in books nor in changes."""
    strange = r',"\ud800":[1.0]'
    async with (
        running_server(flush_interval_ms=0) as server,
        connected(server) as plain,
        connected(server) as delta,
    ):
        await subscribed(plain)
        await subscribed(delta, delta=True)
        level = f'{{"price":9,"quantity":1{strange}}}'.encode()
        bids = b'"bids":[%b]' % level
        publish(server, CHANNEL, book([], [], strange).replace(b'"bids":[]', bids))
        publish(server, CHANNEL, change([("8", "1")], []))
        publish(server, CHANNEL, change([], []).replace(b'"bids":[]', bids))
        for client, last in ((plain, [9, 8]), (delta, [])):  # nothing has changed
            books = [await client.data() for _ in range(3)]
            assert [one["sequence"] for one in books] == [1, 2, 3]
            assert books[0]["bids"] == [{"price": 9, "quantity": 1, "\ud800": [1.0]}]
            assert [level["price"] for level in books[-1]["bids"]] == last


async def test_a_checksum_of_the_producer_is_of_the_book_that_it_came_with() -> None:
    """Books that are made of changes are others, and have none."""
    async with running_server(flush_interval_ms=0) as server, connected(server) as client:
        await subscribed(client)
        publish(server, CHANNEL, book([("9", "1")], [], ',"checksum":7'))
        publish(server, CHANNEL, change([("8", "1")], []))
        assert (await client.data())["checksum"] == 7
        assert "checksum" not in await client.data()


async def test_a_change_of_an_unknown_book_is_a_gap_until_a_whole_one() -> None:
    """It is announced once; prices go on, and the whole book follows them."""
    async with running_server(flush_interval_ms=0) as server, connected(server) as client:
        await subscribed(client)
        for _ in range(3):
            publish(server, CHANNEL, change([("9", "1")], []))
        gap = await client.receive_type("gap")
        assert (gap["reason"], gap["sequence"]) == ("book_unknown", 1)
        publish(server, "stock:A:price", price("A", 1))
        received = await client.data()
        assert (received["type"], received["sequence"], received["previous"]) == (
            "price_update",
            4,
            1,
        )
        publish(server, CHANNEL, book([("9", "1")], []))
        publish(server, CHANNEL, change([("9", "2")], []))
        assert side(await client.data(), "bids") == [(9, 1)]
        assert side(await client.data(), "bids") == [(9, 2)]
        assert server.statistics().ingest.rejected == 3


async def test_a_client_that_returns_while_changes_are_left_out_is_sent_a_gap() -> None:
    """It may have the book from another server, and would not notice that the book is outdated."""
    async with running_server(flush_interval_ms=0) as server, connected(server) as other:
        at = (await other.subscribe("stock:A", kinds=["orderbook"]))["positions"]["A"]
        publish(server, CHANNEL, change([("9", "1")], []))
        await other.receive_type("gap")
        for number in (2, 3):
            publish(server, "stock:A:price", price("A", number))
        since = {"A": at | {"sequence": 2}}
        async with connected(server) as client:
            await client.subscribe("stock:A", since=since)
            gap = await client.receive_type("gap")
            assert (gap["reason"], gap["sequence"]) == ("book_unknown", 3)
        query = f"topic=stock:A&epoch={quote(at['epoch'])}&sequence=2"
        read = (await fetched(server, f"/v1/history?{query}")).json
        assert (read["recovered"], [m["sequence"] for m in read["messages"]]) == (True, [3])
        async with connected(server) as client:
            await client.subscribe("stock:A", since=since, kinds=["price"])
            received = await client.data()
            assert (received["type"], received["sequence"]) == ("price_update", 3)
        async with connected(server) as client:
            # The position is later than all publications of this kind.
            await client.subscribe("stock:A", since=since, kinds=["orderbook"])
            gap = await client.receive_type("gap")
            assert (gap["reason"], gap["sequence"]) == ("book_unknown", 2)
            publish(server, CHANNEL, book([("9", "1")], []))
            assert side(await client.data(), "bids") == [(9, 1)]


@pytest.mark.parametrize("grows_by", ["members", "levels"])
async def test_changes_make_no_book_larger_than_a_publication(grows_by: str) -> None:
    """Their members and levels add up, and each book is copied to every subscriber."""
    async with (
        running_server(flush_interval_ms=0, max_publication_bytes=1000) as server,
        connected(server) as client,
    ):
        await subscribed(client)
        publish(server, CHANNEL, book([("9", "1")], []))
        for number in range(4):
            if grows_by == "members":
                sent = change([], [], f',"member{number}":"{"x" * 350}"')
            else:
                level = f'{{"price":{number},"quantity":1,"note":"{"x" * 350}"}}'
                sent = change([], []).replace(b'"bids":[]', f'"bids":[{level}]'.encode())
            publish(server, CHANNEL, sent)
        received = [await client.data() for _ in range(3)]
        assert [message["sequence"] for message in received] == [1, 2, 3]
        assert max(len(json.dumps(message)) for message in received) < 1200
        gap = await client.receive_type("gap")
        assert (gap["reason"], gap["sequence"]) == ("book_unknown", 4)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (change([("11", "1")], []), "crossed"),
        (change([("9", "-1")], []), "below 0"),
        (change([("9", "1")], [], ',"checksum":1'), "checksum"),
    ],
)
async def test_a_wrong_change_is_refused_and_its_book_unknown(wrong: bytes, reason: str) -> None:
    """It is counted with its reason, and no client receives a stale book afterwards."""
    async with (
        running_server(flush_interval_ms=0) as server,
        connected(server) as client,
        connected(server) as newcomer,
    ):
        await subscribed(client)
        publish(server, CHANNEL, book([("9", "1")], [("10", "1")]))
        await client.data()
        publish(server, CHANNEL, wrong)
        gap = await client.receive_type("gap")
        assert gap["reason"] == "book_unknown"
        assert reason in (server.statistics().ingest.last_rejection or "")
        await subscribed(newcomer)
        await newcomer.ping_pong()
        publish(server, CHANNEL, book([("8", "1")], []))
        assert side(await client.data(), "bids") == [(8, 1)]
        assert side(await newcomer.data(), "bids") == [(8, 1)]


async def test_levels_beyond_the_bound_are_not_kept_nor_made_up() -> None:
    """After a side was cut, changes beyond its last level are ignored until a whole book."""
    settings_ = {"flush_interval_ms": 0, "max_book_levels": 2}
    async with running_server(**settings_) as server, connected(server) as client:
        await subscribed(client)
        publish(server, CHANNEL, book([], [("10", "1"), ("11", "1"), ("12", "1")]))
        await client.data()
        publish(server, CHANNEL, change([], [("9", "1")]))
        assert side(await client.data(), "asks") == [(9, 1), (10, 1)]
        publish(server, CHANNEL, change([], [("9", "0"), ("13", "1")]))
        assert side(await client.data(), "asks") == [(10, 1)]


async def test_a_server_reads_the_book_from_the_history(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """The last whole book with the changes after it is the last known value; without one, none."""
    level = PriceLevel(9.75, 2)
    async with open_publisher(redis_url) as publisher:
        await publisher.publish(CHANNEL, book([("9.50", "1")], []))
        await publisher.publish(CHANNEL, OrderbookDelta("A", [level], []))
        await publisher.publish("stock:B:orderbook", OrderbookDelta("B", [level], []))
        async with running_server(redis=redis_url) as server, connected(server) as client:
            await subscribed(client)
            snapshot = await client.data()
            assert side(snapshot, "bids") == [(9.75, 2), (9.5, 1)]
            await publisher.publish(CHANNEL, OrderbookDelta("A", [PriceLevel(9.5, 0)], []))
            live = await client.data()
            assert (side(live, "bids"), live["sequence"]) == ([(9.75, 2)], 3)
            await client.subscribe("stock:B")
            await client.ping_pong()
    assert redis.ping()


USUAL_NAMES = ("price", "quantity", "orders", "checksum", "target", "sequence", "type", "bids")
ODD_NAMES = ("", "a b", "\ud800", "\udfff\ud83d", "\u0000", '"', "\\", "é", "previous", "timestamp")
NAMES = st.sampled_from([*USUAL_NAMES, *ODD_NAMES])
VALUES = st.one_of(
    st.sampled_from(["null", "true", '"\\ud800"', '"x"', "[]", "{}", '[{"a":1}]', "1e-400", "-0"]),
    NUMBERS,
)


@st.composite
def odd_texts(draw: Any) -> bytes:
    """An order book, or changes of one, with members and numbers that few producers write."""

    def members(*usual: str) -> str:
        more = draw(st.lists(st.tuples(NAMES, VALUES), max_size=2))
        texts = [f"{json.dumps(name)}: {value}" for name, value in more]
        return ",".join(draw(st.permutations([*usual, *texts])))

    def levels() -> str:
        pairs = draw(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3))
        texts = [members(f'"price":{one}', f'"quantity":{other}') for one, other in pairs]
        return f"[{','.join(f'{{{text}}}' for text in texts)}]"

    kind = draw(st.sampled_from(["orderbook_update", "orderbook_delta"]))
    usual = (f'"type":"{kind}"', '"stock_code":"A"', f'"bids":{levels()}', f'"asks":{levels()}')
    return f"{{{members(*usual)}}}".encode()


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(odd_texts(), min_size=2, max_size=6))
def test_each_book_that_is_taken_can_be_sent(texts: list[bytes]) -> None:
    """Whole, cut, as deltas, and with changes: no producer can end a server by an odd one."""
    house = House(history_length=50)
    publishing = house.hub.publishing
    keeper = BookKeeper(
        publishing, SourceReport(lambda: 0.0), max_levels=50, max_book_bytes=1 << 18
    )
    stream = house.hub.stream(STOCK)
    details = (Detail(), Detail(delta=True), Detail(depth=1), Detail(delta=True, depth=1))
    with ExitStack() as stack:
        clients = []
        for detail in details:
            clients.append(stack.enter_context(listening(house.hub)))
            clients[-1].subscribe(STOCK, detail=detail)
        for text in texts:
            try:
                decoded = decode_publication(Kind.ORDERBOOK, "A", text).text
            except InvalidPublicationError:
                continue
            if isinstance(decoded, BookChange):
                keeper.publish(stream, decoded, None)
            else:
                publishing.publish(stream, Kind.ORDERBOOK, decoded)
            for client in clients:
                client.heard()


SIDES = st.tuples(side_texts(most=10), side_texts(least=10))


@settings(max_examples=50, deadline=None)
@given(books=st.lists(SIDES, min_size=2, max_size=6))
def test_random_changes_lead_to_the_book_of_the_producer(
    books: list[tuple[Levels, Levels]],
) -> None:
    """Changes between random books, published as such, give those books."""
    house = House(history_length=50)
    keeper = BookKeeper(
        house.hub.publishing, SourceReport(lambda: 0.0), max_levels=50, max_book_bytes=1 << 18
    )
    bids, asks = books[0]
    with listening(house.hub) as client:
        client.subscribe(STOCK, detail=Detail(delta=True))
        stream = house.hub.stream(STOCK)
        house.hub.publishing.publish(stream, Kind.ORDERBOOK, book(bids[::-1], asks))
        held = content(client.heard()[0])
        for new_bids, new_asks in books[1:]:
            gone = [[(p, "0") for p, _ in old] for old in (bids, asks)]
            text = change(gone[0] + new_bids, gone[1] + new_asks)
            decoded = decode_publication(Kind.ORDERBOOK, "A", text)
            assert isinstance(decoded.text, BookChange)
            keeper.publish(stream, decoded.text, None)
            (received,) = client.heard()
            is_delta = received["type"] == "orderbook_delta"
            held = rebuilt(held, received) if is_delta else content(received)
            truth = content(read_exactly(book(new_bids[::-1], new_asks)))
            assert {side: held[side] for side in ("bids", "asks")} == {
                side: truth[side] for side in ("bids", "asks")
            }
            bids, asks = new_bids, new_asks
    assert json.loads(book([], []))["type"] == "orderbook_update"
