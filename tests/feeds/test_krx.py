"""KRX tick sizes and daily limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.feeds.krx import (
    ceil_to_tick,
    daily_limits,
    floor_to_tick,
    move_ticks,
    tick_size,
)

prices = st.integers(1, 2_000_000)


@pytest.mark.parametrize(
    ("price", "tick"),
    [
        (1, 1),
        (1_999, 1),
        (2_000, 5),
        (4_995, 5),
        (5_000, 10),
        (19_990, 10),
        (20_000, 50),
        (49_950, 50),
        (50_000, 100),
        (199_900, 100),
        (200_000, 500),
        (499_500, 500),
        (500_000, 1_000),
        (1_200_000, 1_000),
    ],
)
def test_the_tick_is_that_of_the_2023_table(price: int, tick: int) -> None:
    """Each band of the table begins where the one below it ends."""
    assert tick_size(price) == tick


def test_no_price_is_below_1_krw() -> None:
    """A price below 1 KRW is an error."""
    with pytest.raises(ValueError, match="no price: 0 KRW"):
        tick_size(0)
    with pytest.raises(ValueError, match="no price: 0 KRW"):
        move_ticks(1, -1)


@pytest.mark.parametrize(
    ("price", "ticks", "expected"),
    [
        (1_999, 1, 2_000),
        (2_000, -1, 1_999),
        (2_000, 1, 2_005),
        (49_950, 2, 50_100),
        (50_100, -2, 49_950),
        (500_000, -1, 499_500),
        (72_500, 0, 72_500),
    ],
)
def test_a_step_over_a_bound_has_the_size_of_its_own_band(
    price: int, ticks: int, expected: int
) -> None:
    """Below a bound the step is the smaller one, in both directions."""
    assert move_ticks(price, ticks) == expected


@given(prices, st.integers(0, 40))
def test_moving_up_and_down_again_comes_back(price: int, ticks: int) -> None:
    """Steps are the same in both directions."""
    price = floor_to_tick(price)
    assert move_ticks(move_ticks(price, ticks), -ticks) == price


@given(prices)
def test_rounding_goes_to_the_ticks_on_both_sides(price: int) -> None:
    """The tick below and the tick above are neighbours, or the price itself."""
    below, above = floor_to_tick(price), ceil_to_tick(price)
    assert below <= price <= above
    assert below % tick_size(below) == above % tick_size(above) == 0
    assert above in {below, move_ticks(below, 1)}


@pytest.mark.parametrize(
    ("base_price", "limits"),
    [
        (10_000, (7_000, 13_000)),
        (72_500, (50_800, 94_200)),
        (1_985, (1_390, 2_580)),
        (186_300, (130_500, 242_000)),
        (202_500, (142_000, 263_000)),
        (968_000, (678_000, 1_258_000)),
    ],
)
def test_daily_limits_are_30_percent_cut_to_the_tick(
    base_price: int, limits: tuple[int, int]
) -> None:
    """The limits are on ticks, and never farther than 30 %."""
    assert daily_limits(base_price) == limits


@given(prices)
def test_daily_limits_are_on_ticks_and_not_beyond_30_percent(price: int) -> None:
    """This holds for every base price."""
    base_price = floor_to_tick(price)
    lower, upper = daily_limits(base_price)
    assert base_price * 7 <= lower * 10 <= base_price * 10 <= upper * 10 <= base_price * 13
    assert lower % tick_size(lower) == upper % tick_size(upper) == 0
