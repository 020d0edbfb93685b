"""The cost of a subscribe is measured on the server's own parts."""

from __future__ import annotations

import os
from pathlib import Path

from bench.subscribe_cost import measure


async def test_each_stage_has_its_cost() -> None:
    """The stages are those from the request to the leave."""
    with Path(os.devnull).open("wb") as sink:  # noqa: ASYNC230 - a device that never blocks
        costs = await measure(3, 20, sink.fileno())
    assert list(costs) == ["decode", "subscribe", "record", "leave, with a record", "together"]
    assert all(cost > 0 for cost in costs.values())
