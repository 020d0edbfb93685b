"""Tick sizes and daily price limits of the Korea Exchange (KRX), in KRW.

Tick sizes: the table in force since 2023-01-25, the same for KOSPI, KOSDAQ and KONEX
(KRX, Enforcement Rules of the Market Business Regulations). Limits: 30 % of the base price, which
is the previous close, since 2015-06-15, rounded to ticks towards the base price.
"""

from __future__ import annotations

from typing import Final

_TICK_SIZES: Final = (
    (2_000, 1),
    (5_000, 5),
    (20_000, 10),
    (50_000, 50),
    (200_000, 100),
    (500_000, 500),
)
"""(upper bound of the price band, tick size). Each bound is a multiple of both its ticks."""
_LARGEST_TICK: Final = 1_000
_LIMIT_PERCENT: Final = 30


def tick_size(price: int) -> int:
    """Return the tick size of `price`'s price band.

    Raises ValueError below 1 KRW.
    """
    if price < 1:
        raise ValueError(f"no price: {price} KRW")
    return next((tick for bound, tick in _TICK_SIZES if price < bound), _LARGEST_TICK)


def floor_to_tick(price: int) -> int:
    """Round `price` down to a tick."""
    return price - price % tick_size(price)


def ceil_to_tick(price: int) -> int:
    """Round `price` up to a tick."""
    return price + -price % tick_size(price)


def move_ticks(price: int, ticks: int) -> int:
    """Move `price`, which is on a tick, by a number of ticks, across bounds of price bands.

    Raises ValueError if the result would be below 1 KRW.
    """
    for _ in range(ticks):
        price += tick_size(price)
    for _ in range(-ticks):
        price -= tick_size(price - 1)
    return price


def daily_limits(base_price: int) -> tuple[int, int]:
    """Return the lowest and the highest price of a day with this base price."""
    largest_change = base_price * _LIMIT_PERCENT // 100
    largest_change -= largest_change % tick_size(base_price)
    return ceil_to_tick(base_price - largest_change), floor_to_tick(base_price + largest_change)
