"""Books of changes are published whole now and then, and always right."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from streamer.feeds.kept_books import MIN_LEVELS, WHOLE_EVERY_NS
from streamer.feeds.mapper import Mapper, is_change
from streamer.feeds.mapping_reader import read_mapping
from streamer.feeds.recording_lines import Origin
from tests.feeds.recordings import depth, snapshot

BINANCE: Final = Path(__file__).parents[2] / "docs" / "examples" / "feeds" / "binance.toml"
CHANNEL: Final = "stock:BTCUSDT:orderbook"
ORIGIN: Final = Origin("r", 1)
START_NS: Final = 1_723_161_255_342_000_000

Side = dict[Decimal, Decimal]


class Feed:
    """An exchange with a book, the mapper of its messages, and a client of what is published."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.mapper = Mapper(
            read_mapping(BINANCE), on_problem=lambda _key, reason: self.problems.append(reason)
        )
        self.now_ns = START_NS
        self.last = 0
        self.bids: Side = {}
        self.asks: Side = {}
        self.client_bids: Side = {}
        self.client_asks: Side = {}
        self.last_text = b""

    def _publish(self, message: str) -> bool:
        """Map a message; return whether a whole book is published."""
        ((_, self.last_text),) = self.mapper.map(message, self.now_ns, ORIGIN)
        published: dict[str, Any] = json.loads(self.last_text, parse_float=Decimal)
        is_whole = not is_change((CHANNEL, self.last_text))
        for side, name in ((self.client_bids, "bids"), (self.client_asks, "asks")):
            if is_whole:
                side.clear()
            apply(side, [(level["price"], level["quantity"]) for level in published[name]])
        return is_whole

    def whole(self) -> None:
        """Send the whole book."""
        self.last += 1
        assert self._publish(snapshot(self.last, texts(self.bids), texts(self.asks)))

    def change(self, bids: Side, asks: Side) -> bool:
        """Send a change; return whether the whole book is published instead."""
        self.last += 1
        apply(self.bids, bids.items())
        apply(self.asks, asks.items())
        return self._publish(depth(self.last, self.last, texts(bids), texts(asks)))

    def check(self, levels: int) -> None:
        """The client has the best levels, and those beyond them that it was sent."""
        for client, own, descending in (
            (self.client_bids, self.bids, True),
            (self.client_asks, self.asks, False),
        ):
            held = sorted(client.items(), reverse=descending)
            best = sorted(own.items(), reverse=descending)
            assert held == best[: len(held)]
            assert len(held) >= min(levels, len(best))


def apply(side: Side, levels: Any) -> None:
    """Apply levels with their new quantity."""
    for price, quantity in levels:
        side[price] = quantity
        if not quantity:
            del side[price]


def texts(side: Side) -> dict[str, str]:
    """Return levels as the exchange writes them."""
    return {f"{price:f}": f"{quantity:.8f}" for price, quantity in side.items()}


def book(levels: int) -> Feed:
    """Return a feed that has sent a book with so many levels of each side."""
    feed = Feed()
    feed.bids = {Decimal(f"{1000 - n}.10"): Decimal(1) for n in range(levels)}
    feed.asks = {Decimal(f"{1001 + n}.10"): Decimal(1) for n in range(levels)}
    feed.whole()
    return feed


NOTHING: Final[Side] = {}
BID: Final = {Decimal("1000.20"): Decimal("0.30000000")}


def test_a_book_is_published_whole_after_a_while() -> None:
    """In place of a change, with the numbers of the feed and the time of the change."""
    feed = book(2)
    feed.now_ns += WHOLE_EVERY_NS - 1
    assert not feed.change(BID, NOTHING)
    feed.now_ns += 1
    assert feed.change(NOTHING, {Decimal("1001.10"): Decimal(0)})
    assert feed.last_text == (
        b'{"type":"orderbook_update","stock_code":"BTCUSDT","timestamp":"2024-08-08T23:54:15.208Z",'
        b'"bids":[{"price":1000.20,"quantity":0.30000000},'
        b'{"price":1000.10,"quantity":1.00000000},{"price":999.10,"quantity":1.00000000}],'
        b'"asks":[{"price":1002.10,"quantity":1.00000000}]}'
    )
    assert not feed.change(BID, NOTHING)


def test_a_book_is_published_whole_when_it_is_wanted() -> None:
    """Once, and only of a channel that has one."""
    feed = book(2)
    feed.mapper.renew_book("stock:OTHER:orderbook")
    feed.mapper.renew_book(CHANNEL)
    assert [feed.change(BID, NOTHING) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("name", ["bids", "asks"])
def test_a_book_is_published_whole_when_half_of_its_levels_are_gone(name: str) -> None:
    """The price has moved on to levels that servers were not sent; soon they would have none."""
    feed = book(MIN_LEVELS)
    assert not feed.change(
        {Decimal(f"{900 - n}.10"): Decimal(1) for n in range(MIN_LEVELS)},
        {Decimal(f"{1101 + n}.10"): Decimal(1) for n in range(MIN_LEVELS)},
    )
    feed.mapper.renew_book(CHANNEL)
    assert feed.change({Decimal("1000.10"): Decimal(2)}, NOTHING)
    side = feed.bids if name == "bids" else feed.asks
    best = sorted(side, reverse=name == "bids")
    half = dict.fromkeys(best[: MIN_LEVELS // 2], Decimal(0))
    one_more = {best[MIN_LEVELS // 2]: Decimal(0)}
    for levels, is_whole in (half, False), (one_more, True):
        changed = {"bids": NOTHING, "asks": NOTHING} | {name: levels}
        assert feed.change(**changed) == is_whole
    feed.check(MIN_LEVELS)


def test_a_book_that_was_refused_is_published_again_but_not_all_the_time() -> None:
    """At the next change, and after that at intervals; no change comes before it."""
    feed = book(2)
    kept = feed.mapper.kept_book(CHANNEL)
    assert kept is not None
    kept.refuse()
    assert feed.change(BID, NOTHING)
    assert not feed.change(BID, NOTHING)
    kept.refuse()
    feed.now_ns += WHOLE_EVERY_NS - 1
    withheld = depth(feed.last + 1, feed.last + 1, {"1000.30": "1"}, {})
    assert feed.mapper.map(withheld, feed.now_ns, ORIGIN) == []
    assert feed.mapper.counts.withheld == 1
    apply(feed.bids, [(Decimal("1000.30"), Decimal(1))])
    feed.last += 1
    feed.now_ns += 1
    assert feed.change(NOTHING, {Decimal("1001.10"): Decimal(2)})
    feed.check(4)
    assert not feed.change(BID, NOTHING)


def test_a_book_that_is_crossed_for_a_moment_is_published_whole() -> None:
    """A server takes no change that crosses a book, but whole books as they are."""
    feed = book(2)
    assert feed.change({Decimal("1001.20"): Decimal(1)}, NOTHING)
    assert not feed.change(NOTHING, {Decimal("1001.10"): Decimal(0)})
    feed.check(3)


@pytest.mark.parametrize("levels", [3, 150, 1200])
def test_random_changes_lead_to_the_book_of_the_feed(levels: int) -> None:
    """Whatever appears, goes, crosses, or is beyond the levels that were published."""
    for seed in range(3):
        rng = random.Random(seed)
        feed = book(levels)
        center, wholes = 1001, 0
        for _ in range(150):
            feed.now_ns += rng.randrange(WHOLE_EVERY_NS // 5)
            center += rng.choice([-3, 0, 3])
            bids, asks = (
                {
                    Decimal(f"{center + sign * rng.randrange(levels * 2)}.10"): Decimal(
                        rng.choice([0, 0, 1, 2])
                    )
                    for _ in range(rng.randrange(20))
                }
                for sign in (-1, 1)
            )
            bids = {
                price: quantity
                for price, quantity in bids.items()
                if quantity or price in feed.bids
            }
            asks = {
                price: quantity
                for price, quantity in asks.items()
                if quantity or price in feed.asks
            }
            wholes += feed.change(bids, asks)
            feed.check(MIN_LEVELS // 2)
        assert wholes > 10


def test_a_book_is_no_larger_than_that_of_the_feed() -> None:
    """Servers take publications up to a size, which the feed's own book had."""
    feed = book(300)
    size = len(feed.last_text)
    wide = {Decimal(f"{1000 - n}.1{'0' * 90}1"): Decimal(1) for n in range(300)}
    feed.mapper.renew_book(CHANNEL)
    assert feed.change(wide, NOTHING)
    assert len(feed.last_text) <= size
    feed.check(MIN_LEVELS // 2)
    assert not feed.change({Decimal(1): Decimal(1)}, {Decimal(9999): Decimal(1)})
    assert b'"bids":[],"asks":[]' in feed.last_text


def test_levels_are_kept_within_a_bound() -> None:
    """The worst ones go first: a feed names prices far from the best ones, for ever."""
    feed = book(1)
    many = 10_050
    assert not feed.change(
        {Decimal(f"900.{n:05}"): Decimal(1) for n in range(many)},
        {Decimal(f"1100.{n:05}"): Decimal(1) for n in range(many)},
    )
    feed.mapper.renew_book(CHANNEL)
    assert feed.change(
        {Decimal(f"900.{n:05}"): Decimal(0) for n in range(60, many)}
        | {Decimal("1000.10"): Decimal(0)},
        {Decimal(f"1100.{n:05}"): Decimal(0) for n in range(many - 60)}
        | {Decimal("1001.10"): Decimal(0)},
    )
    assert (len(feed.client_bids), max(feed.client_bids)) == (9, Decimal("900.00059"))
    assert (len(feed.client_asks), min(feed.client_asks)) == (9, Decimal(f"1100.{many - 60:05}"))
