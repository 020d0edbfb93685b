"""Recordings of any feed, played by a mapping."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from streamer.feeds.mapped import mapped_feed
from streamer.feeds.mapping_reader import read_mapping
from streamer.feeds.recorder import Recorder, RecordingFiles
from streamer.protocol.topics import Kind, parse_channel
from tests.feeds.exchanges import UPBIT_BOOK, UPBIT_TRADE
from tests.feeds.recordings import BTCUSDT, CONTENTS, ETHUSDT, depth, snapshot, trade

EXAMPLES: Final = Path(__file__).parents[2] / "docs" / "examples" / "feeds"
MIDNIGHT_NS: Final = 1_723_248_000 * 10**9
"""2024-08-10T00:00:00Z."""
SECOND_NS: Final = 10**9


def recorded(prefix: Path, *connections: list[str], start_ns: int = MIDNIGHT_NS) -> list[Path]:
    """Record the messages of some connections, a second apart; return the files."""
    files = RecordingFiles(prefix)
    recorder = Recorder(files)
    at_ns = start_ns
    for number, messages in enumerate(connections, 1):
        recorder.connected(number)
        for message in messages:
            recorder.add(message, at_ns)
            at_ns += SECOND_NS
    recorder.close()
    return files.paths


def played(name: str, paths: list[Path]) -> tuple[list[Any], list[str]]:
    """Return what is published of recordings by an example's mapping, and the problems."""
    problems: list[str] = []
    feed = mapped_feed(paths, read_mapping(EXAMPLES / name), on_problem=problems.append)
    return [json.loads(message.payload, parse_float=Decimal) for message in feed], problems


def test_a_recorded_feed_of_any_exchange_is_played(tmp_path: Path) -> None:
    """At the pace of the recording, with the digits of the exchange."""
    paths = recorded(tmp_path / "u", [UPBIT_BOOK, UPBIT_TRADE % 1, '{"status":"UP"}'])
    feed = list(mapped_feed(paths, read_mapping(EXAMPLES / "upbit.toml")))
    assert [(m.at_seconds, m.channel) for m in feed] == [
        (0.0, "stock:KRW-BTC:orderbook"),
        (1.0, "stock:KRW-BTC:price"),
    ]
    assert b'"price":85123000.00000000,' in feed[1].payload


def test_books_are_rebuilt_after_a_reconnect_and_trades_go_on(tmp_path: Path) -> None:
    """Changes after a reconnect wait for the fresh snapshot of that connection."""
    paths = recorded(
        tmp_path / "b",
        [snapshot(1), depth(2, 2), trade(1, "1.0")],
        [depth(9, 9), trade(2, "2.0"), snapshot(8), depth(10, 10), trade(3, "3.0")],
        [depth(11, 11), trade(4, "4.0")],
    )
    messages, problems = played("binance.toml", paths)
    assert [m.get("trade_id", m["type"]) for m in messages] == [
        *("orderbook_update", "orderbook_delta", 1, 2),
        *("orderbook_update", "orderbook_delta", "orderbook_delta", 3, 4),
    ]
    assert problems == ["1 changes of order books follow no whole book"]


def test_the_files_of_two_days_are_one_recording(tmp_path: Path) -> None:
    """The second one has no snapshot: the book, prices and volume go on."""
    paths = recorded(
        tmp_path / "b",
        [snapshot(1), trade(1, "2.0"), depth(2, 2), trade(2, "3.0"), depth(3, 3)],
        start_ns=MIDNIGHT_NS - 3 * SECOND_NS,
    )
    assert len(paths) == 2
    messages, problems = played("binance.toml", paths)
    assert [m["type"] for m in messages[-2:]] == ["price_update", "orderbook_delta"]
    assert (messages[-2]["change"], messages[-2]["volume"]) == (Decimal("1.0"), Decimal("0.04"))
    assert problems == []


def test_a_recording_that_was_begun_anew_needs_a_book_of_its_own(tmp_path: Path) -> None:
    """Another run of the recorder is another connection, whatever its number."""
    first = recorded(tmp_path / "a", [snapshot(1), depth(2, 2)])
    second = recorded(tmp_path / "b", [depth(3, 3)], start_ns=MIDNIGHT_NS + 60 * SECOND_NS)
    messages, problems = played("binance.toml", first + second)
    assert [m["type"] for m in messages] == ["orderbook_update", "orderbook_delta"]
    assert len(problems) == 1


def test_bad_messages_are_reported_at_the_end(tmp_path: Path) -> None:
    """Each kind once, with its count; they cost the others nothing."""
    bad = trade(1, "NaN")
    paths = recorded(tmp_path / "b", [bad, trade(2, "1.0"), bad])
    messages, problems = played("binance.toml", paths)
    assert [m["trade_id"] for m in messages] == [2]
    assert problems == ["message[0]: data.p is no number: 'NaN' (2 times)"]


def test_real_recordings_are_merged_in_time() -> None:
    """Each trade of both, and each change that follows the snapshot."""
    feed = list(mapped_feed([BTCUSDT, ETHUSDT], read_mapping(EXAMPLES / "binance.toml")))
    assert all(a.at_seconds <= b.at_seconds for a, b in pairwise(feed))
    for path, symbol in ((BTCUSDT, "BTCUSDT"), (ETHUSDT, "ETHUSDT")):
        kinds = [
            parse_channel(message.channel)[1]
            for message in feed
            if f":{symbol}:" in message.channel
        ]
        assert kinds.count(Kind.PRICE) == CONTENTS[path].trades
