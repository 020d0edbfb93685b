"""The order book against a model that sorts everything each time."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from streamer.feeds.binance import DepthSnapshot, DepthUpdate
from streamer.feeds.orderbook import OrderBook

levels = st.lists(
    st.tuples(
        st.decimals(1, 3, places=1),
        st.one_of(st.just(Decimal(0)), st.decimals(Decimal("0.1"), 9, places=1)),
    )
)


def modelled(model: dict[Decimal, Decimal]) -> list[tuple[Decimal, Decimal]]:
    """Return the levels with a quantity, by price."""
    return sorted((price, quantity) for price, quantity in model.items() if quantity)


@given(
    st.tuples(levels, levels), st.lists(st.tuples(levels, levels), max_size=8), st.integers(1, 12)
)
def test_the_best_levels_are_those_of_a_sorted_book(
    snapshot: tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]],
    updates: list[tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]],
    count: int,
) -> None:
    """After any updates, the best levels are the highest bids and lowest asks with a quantity."""
    book = OrderBook(DepthSnapshot(0, *snapshot))
    bids, asks = dict(snapshot[0]), dict(snapshot[1])
    for update_id, (new_bids, new_asks) in enumerate(updates, 1):
        sent_at = datetime(2024, 8, 9, tzinfo=UTC)
        assert book.apply(DepthUpdate("BTCUSDT", update_id, update_id, sent_at, new_bids, new_asks))
        bids.update(new_bids)
        asks.update(new_asks)
    assert book.update_id == len(updates)
    assert book.best_bids(count) == modelled(bids)[::-1][:count]
    assert book.best_asks(count) == modelled(asks)[:count]
