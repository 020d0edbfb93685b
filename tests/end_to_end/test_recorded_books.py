"""Order books of a recorded feed, rebuilt by a client from deltas.

The feed's book tickers are an independent witness: the best bid and ask of a rebuilt book must be
theirs, to the last digit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import pytest
import trio

from streamer.client import Backoff, Client, OrderbookUpdate, open_client
from streamer.feeds.feed import FeedMessage
from streamer.feeds.recorded import recorded_feed
from streamer.server import Server
from tests.feeds.recordings import (
    BTCUSDT,
    ETHUSDT,
    agreeing_books,
    assert_books_agree_with_tickers,
)
from tests.helpers.server import first_session, publish, running_server
from tests.helpers.timing import eventually

RECORDINGS: Final = {"BTCUSDT": BTCUSDT, "ETHUSDT": ETHUSDT}
TOPICS: Final = [f"stock:{code}" for code in RECORDINGS]
SETTINGS: Final[dict[str, Any]] = {
    "flush_interval_ms": 0.0,
    "history_length": 1000,
    "heartbeat_interval_seconds": 1000,  # a client that does not read answers no ping
    "compression_min_members": 1,
    "compression_stretch_limit_ms": 60_000,
}
Book = dict[str, Any]


@pytest.fixture(scope="module")
def feed() -> Sequence[FeedMessage]:
    """The order books of both recordings, in the order of their receipt."""
    messages = recorded_feed(RECORDINGS.values())
    return [message for message in messages if message.channel.endswith(":orderbook")]


async def play(server: Server, feed: Sequence[FeedMessage]) -> None:
    """Publish as fast as the server takes it."""
    for message in feed:
        publish(server, message.channel, message.payload)
        await trio.lowlevel.checkpoint()


class Receiver:
    """The books that a client has received, by the code of the stock."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.books: dict[str, list[Book]] = {code: [] for code in RECORDINGS}
        self.texts: dict[str, list[str]] = {code: [] for code in RECORDINGS}
        self.sequences: Counter[str] = Counter()

    async def read_to(self, sequences: Counter[str]) -> None:
        """Receive until each topic is at its sequence."""
        while self.sequences != sequences:
            message = await self._client.receive()
            assert isinstance(message, OrderbookUpdate), message
            assert message.topic is not None
            code = message.topic.target
            sides = {
                name: [{"price": level.price, "quantity": level.quantity} for level in levels]
                for name, levels in (("bids", message.bids), ("asks", message.asks))
            }
            self.books[code].append({"update_id": message.extra["update_id"], **sides})
            self.texts[code].append(message.text)
            self.sequences[code] = message.sequence

    def check(self, server: Server) -> None:
        """Every delta had its base and its checksum, and most messages were deltas."""
        account = self._client.account()
        assert (account.violations, account.gaps, account.outstanding) == (0, {}, 0)
        assert server.statistics().hub.delta_checksum_failures == 0
        for texts in self.texts.values():
            deltas = sum('"orderbook_delta"' in text for text in texts)
            assert deltas > 0.9 * len(texts) - 2


def ends(feed: Sequence[FeedMessage]) -> Counter[str]:
    """The last sequence of each topic after the feed."""
    return Counter(message.channel.split(":")[1] for message in feed)


@pytest.mark.parametrize("compress", [False, True])
async def test_every_book_agrees_with_the_tickers(
    feed: Sequence[FeedMessage], *, compress: bool
) -> None:
    """At full speed, each book of the recordings is rebuilt."""
    async with (
        running_server(**SETTINGS) as server,
        open_client(server.websocket_url, compress=compress) as client,
        trio.open_nursery() as nursery,
    ):
        await client.subscribe(TOPICS, kinds=["orderbook"], mode="all", delta=True)
        receiver = Receiver(client)
        nursery.start_soon(play, server, feed)
        await receiver.read_to(ends(feed))
        receiver.check(server)
        for code, path in RECORDINGS.items():
            assert_books_agree_with_tickers(path, receiver.books[code])
        compression = server.statistics().compression
        assert (compression is not None and compression.messages > 0) == compress


@pytest.mark.parametrize("compress", [False, True])
async def test_the_books_of_a_client_that_stalls_agree_with_the_tickers(
    feed: Sequence[FeedMessage], *, compress: bool
) -> None:
    """Books are merged while its socket is full, and what it is sent then changes its last one."""
    async with (
        running_server(**SETTINGS) as server,
        open_client(server.websocket_url, compress=compress, buffer_messages=1) as client,
    ):
        await client.subscribe(TOPICS, kinds=["orderbook"], delta=True)
        outbox = first_session(server).outbox
        played: list[FeedMessage] = []
        while not outbox.blocked:
            await play(server, feed)
            played += feed
        await play(server, feed)
        played += feed
        receiver = Receiver(client)
        await receiver.read_to(ends(played))
        receiver.check(server)
        assert client.account().merged > 0
        for code, path in RECORDINGS.items():
            books, same_id = agreeing_books(path, receiver.books[code])
            assert 0 < books < ends(played)[code]
            assert same_id > 0
            assert receiver.books[code][-1]["update_id"] == last_update_id(feed, code)


@pytest.mark.parametrize("compress", [False, True])
async def test_the_books_of_a_client_that_comes_back_agree_with_the_tickers(
    feed: Sequence[FeedMessage], *, compress: bool
) -> None:
    """It is sent what it missed, which begins with a whole book."""
    middle = len(feed) // 2
    async with (
        running_server(**SETTINGS) as server,
        open_client(
            server.websocket_url, compress=compress, backoff=Backoff(first_seconds=0.0)
        ) as client,
    ):
        await client.subscribe(TOPICS, kinds=["orderbook"], mode="all", delta=True)
        receiver = Receiver(client)
        await play(server, feed[:middle])
        await receiver.read_to(ends(feed[:middle]))
        first_session(server).give_up()
        await eventually(lambda: not server.statistics().subscriptions)
        await play(server, feed[middle:])
        await receiver.read_to(ends(feed))
        receiver.check(server)
        assert client.statistics().connections == 2
        for code, path in RECORDINGS.items():
            assert_books_agree_with_tickers(path, receiver.books[code])
            first_missed = receiver.texts[code][ends(feed[:middle])[code]]
            assert '"orderbook_update"' in first_missed


def last_update_id(feed: Sequence[FeedMessage], code: str) -> int:
    """The update id of the last book of a stock."""
    last = next(message for message in reversed(feed) if f":{code}:" in message.channel)
    update_id: int = json.loads(last.payload)["update_id"]
    return update_id
