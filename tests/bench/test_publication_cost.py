"""The cost of a publication is measured on the server's own parts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.measure import spread_subscriptions
from bench.publication_cost import lists_at_random, measure


@pytest.mark.parametrize("lists", [spread_subscriptions(6, 8, 4), lists_at_random(6, 8, 4)])
async def test_each_publication_is_written_and_has_its_cost(lists: list[list[int]]) -> None:
    """It checks by itself that the clients were written to."""
    with Path(os.devnull).open("wb") as sink:  # noqa: ASYNC230 - a device that never blocks
        assert await measure(lists, sink.fileno(), 500) > 0
