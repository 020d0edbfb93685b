"""A client applies deltas, checks each checksum, and asks for whole messages where one is wrong.

The books are those of a recorded feed.
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import trio

from streamer.client import (
    Client,
    Event,
    Fault,
    Gap,
    OrderbookUpdate,
    PriceUpdate,
    Topic,
    Verifier,
    decode_server,
    open_client,
)
from streamer.client.messages import Data
from streamer.feeds.recorded import recorded_feed
from streamer.protocol import messages
from streamer.server import Server
from tests.client.conftest import Serve
from tests.feeds.recordings import BTCUSDT
from tests.helpers.timing import eventually

STOCK = Topic.parse("stock:BTCUSDT")
MESSAGES = 300


def feed(count: int = MESSAGES) -> list[tuple[str, bytes]]:
    """The first order books and prices of the recording, as they are published."""
    published = [(m.channel, m.payload) for m in recorded_feed([BTCUSDT])]
    first_book = next(i for i, (channel, _) in enumerate(published) if "orderbook" in channel)
    return published[first_book : first_book + count]


def publish(server: Server, publications: list[tuple[str, bytes]]) -> None:
    """Publish on the bus of the server."""
    assert server.bus is not None
    for channel, payload in publications:
        server.bus.publish(channel, payload)


def whole(payload: bytes) -> Data:
    """The message as a client without deltas reads it."""
    (message,) = decode_server((payload[:-1] + b',"sequence":1}').decode())
    assert isinstance(message, Data)
    return message


def same(received: Event, published: bytes) -> None:
    """Check that a message says what was published, number by number."""
    expected = whole(published)
    assert isinstance(received, PriceUpdate | OrderbookUpdate)
    assert type(received) is type(expected)
    names = ["stock_code", "timestamp", "extra"]
    names += ["price", "volume"] if isinstance(received, PriceUpdate) else ["bids", "asks"]
    for name in names:
        assert getattr(received, name) == getattr(expected, name)


async def test_books_rebuilt_from_deltas_are_those_of_the_feed(server: Server) -> None:
    """In mode all each message is, and most of them came as deltas."""
    published = feed()
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK], mode="all", delta=True)
        deltas = 0
        for start in range(0, len(published), 50):
            publish(server, published[start : start + 50])
            for _, payload in published[start : start + 50]:
                received = await client.receive()
                same(received, payload)
                deltas += "_delta" in getattr(received, "text", "")
        assert client.account().violations == 0
        assert deltas > MESSAGES // 2


async def test_a_client_that_stalls_holds_the_newest_book_afterwards(
    start_server: Serve,
) -> None:
    """It reads on after much was merged for it, and each book it gets is one of the feed."""
    server = await start_server()
    published = feed()
    by_update = {orjson.loads(p).get("update_id"): p for c, p in published if "orderbook" in c}
    async with open_client(server.websocket_url, buffer_messages=1) as client:
        await client.subscribe([STOCK], kinds=["orderbook"], delta=True)
        books = [(channel, payload) for channel, payload in published if "orderbook" in channel]
        last = orjson.loads(books[-1][1])["update_id"]
        while True:
            # The last book again and again, until the server holds back for this client.
            publish(server, books)
            if server.statistics().messages_conflated:
                break
            await trio.lowlevel.checkpoint()
        ended = orjson.dumps(orjson.loads(books[0][1]) | {"update_id": 0})
        publish(server, [(books[0][0], ended)])
        by_update[0] = ended
        merged = 0
        while True:
            message = await client.receive()
            assert isinstance(message, OrderbookUpdate)
            merged += message.previous is not None
            if message.extra["update_id"] == 0:
                break
            same(message, by_update[message.extra["update_id"]])
        assert merged
        assert last in by_update
        account = client.account()
        assert account.violations == 0


async def test_over_a_reconnect_the_books_are_those_of_the_feed(server: Server) -> None:
    """The messages missed meanwhile are replayed, the first of them whole."""
    published = feed(90)
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK], mode="all", delta=True)
        for part in (published[:30], published[30:60], published[60:]):
            await eventually(lambda: client.statistics().connected)
            publish(server, part[:15])
            await eventually(lambda: len(server._acceptor.sessions) == 1)
            (session,) = server._acceptor.sessions.values()
            session.give_up()
            publish(server, part[15:])
            received = 0
            while received < len(part):
                message = await client.receive()
                assert not isinstance(message, Gap)
                same(message, part[received][1])
                received += 1
        assert client.account().violations == 0


async def test_a_wrong_checksum_is_a_violation_and_whole_messages_are_asked_for(
    server: Server,
) -> None:
    """The client goes on with the book that the server then sends; the server counts it."""
    books = [(channel, payload) for channel, payload in feed() if "orderbook" in channel]
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK], kinds=["orderbook"], mode="all", delta=True)
        publish(server, books[:2])
        for _, payload in books[:2]:
            same(await client.receive(), payload)
        _corrupt(client)
        publish(server, books[2:3])
        resynced = await client.receive()
        assert isinstance(resynced, OrderbookUpdate)
        assert resynced.snapshot
        same(resynced, books[2][1])
        publish(server, books[3:4])
        received = await client.receive()
        same(received, books[3][1])
        assert client.account().faults == {Fault.CHECKSUM: 1}
        assert server.statistics().hub.delta_checksum_failures == 1


def _corrupt(client: Client) -> None:
    """Let the client hold another book than the server thinks."""
    held = client._verifier._deltas._held
    book: Any = held[STOCK, OrderbookUpdate]
    object.__setattr__(book, "asks", book.asks[:3])


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_depth_holds_for_whole_books_and_deltas(server: Server, depth: int) -> None:
    """Each side has the best levels of the feed's book."""
    books = [(channel, payload) for channel, payload in feed() if "orderbook" in channel][:40]
    async with open_client(server.websocket_url) as client:
        await client.subscribe([STOCK], kinds=["orderbook"], mode="all", delta=True, depth=depth)
        publish(server, books)
        for _, payload in books:
            received = await client.receive()
            expected = whole(payload)
            assert isinstance(received, OrderbookUpdate)
            assert isinstance(expected, OrderbookUpdate)
            assert received.bids == tuple(expected.bids)[:depth]
            assert received.asks == tuple(expected.asks)[:depth]
        assert client.account().violations == 0


def test_a_delta_without_a_base_is_a_violation_once() -> None:
    """A verifier reports it, and no further delta of the topic until a whole message."""
    verifier = Verifier()
    verifier.sent(messages.Subscribe(STOCK.subscription_type, [STOCK.target], request_id=1))
    (answer,) = decode_server(
        '{"type":"subscribed","timestamp":"2026-01-02T03:04:05Z","subscription_type":"stock",'
        '"targets":["BTCUSDT"],"rejected":[],"request_id":1,'
        '"positions":{"BTCUSDT":{"epoch":"e","sequence":0}}}'
    )
    verifier.receive(answer)
    for sequence in (1, 2):
        (delta,) = decode_server(
            '{"type":"price_delta","timestamp":"2026-01-02T03:04:05Z","stock_code":"BTCUSDT",'
            f'"price":1.50,"note":null,"sequence":{sequence}}}'
        )
        verifier.receive(delta)
        assert verifier.whole is None
    (price,) = decode_server(
        '{"type":"price_update","timestamp":"2026-01-02T03:04:05Z","stock_code":"BTCUSDT",'
        '"price":1,"change":0,"change_percent":0,"volume":1,"note":"x","sequence":3}'
    )
    verifier.receive(price)
    (delta,) = decode_server(
        '{"type":"price_delta","timestamp":"2026-01-02T03:04:06Z","stock_code":"BTCUSDT",'
        '"price":1.50,"note":null,"sequence":4}'
    )
    verifier.receive(delta)
    assert isinstance(verifier.whole, PriceUpdate)
    assert (f"{verifier.whole.price}", verifier.whole.extra) == ("1.50", {"note": None})
    assert verifier.account().faults == {Fault.BASE: 1}
