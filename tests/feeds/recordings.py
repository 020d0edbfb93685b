"""Where the recorded market data is, and how tests write recordings of their own."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "data" / "binance-2024-08-09"
"""Beside the checkout: the data is not part of the project's tree."""

BTCUSDT = RECORDINGS / "spot_btcusdt.gz"
ETHUSDT = RECORDINGS / "spot_ethusdt.gz"


def text_of(path: Path) -> str:
    """The whole recording as text."""
    return gzip.decompress(path.read_bytes()).decode()


def trade(trade_id: int, price: str, *, symbol: str = "BTCUSDT", **changed: Any) -> str:
    """The JSON of a trade as the exchange sends it."""
    data = {
        "e": "trade",
        "E": 1723161255343,
        "s": symbol,
        "t": trade_id,
        "p": price,
        "q": "0.02000000",
        "T": 1723161255342,
        "m": True,
    }
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": data | changed})


def depth(
    first: int,
    last: int,
    bids: dict[str, str] | None = None,
    asks: dict[str, str] | None = None,
    *,
    symbol: str = "BTCUSDT",
) -> str:
    """The JSON of a depth update as the exchange sends it; levels as price -> quantity."""
    data = {
        "e": "depthUpdate",
        "E": 1723161255208,
        "s": symbol,
        "U": first,
        "u": last,
        "b": list((bids or {}).items()),
        "a": list((asks or {}).items()),
    }
    return json.dumps({"stream": f"{symbol.lower()}@depth@100ms", "data": data})


def snapshot(
    last: int, bids: dict[str, str] | None = None, asks: dict[str, str] | None = None
) -> str:
    """The JSON of a depth snapshot as the exchange answers with it."""
    return json.dumps(
        {
            "lastUpdateId": last,
            "bids": list((bids or {}).items()),
            "asks": list((asks or {}).items()),
        }
    )


def write_recording(path: Path, *events: str, interval_ns: int = 1_000_000_000) -> Path:
    """A plain recording of these events, one each `interval_ns`."""
    lines = (f"{1_723_161_254_000_000_000 + interval_ns * i} {e}\n" for i, e in enumerate(events))
    path.write_text("".join(lines))
    return path
