"""Recordings as feeds, compared with the recordings' own text and book tickers.

Covers streamer.feeds.binance.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
from decimal import Decimal
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest

from streamer.feeds.feed import FeedError, FeedMessage
from streamer.feeds.recorded import recorded_feed
from streamer.protocol.publications import decode_publication
from streamer.protocol.topics import Kind, parse_channel
from tests.feeds.recordings import (
    BTCUSDT,
    CONTENTS,
    ETHUSDT,
    assert_books_agree_with_tickers,
    depth,
    snapshot,
    text_of,
    trade,
    write_recording,
)


@attrs.frozen
class Recording:
    """A recording and its whole feed."""

    path: Path
    text: str
    feed: list[FeedMessage]

    def of_kind(self, kind: Kind) -> list[FeedMessage]:
        """Return the messages of one kind."""
        return [m for m in self.feed if parse_channel(m.channel)[1] is kind]


@pytest.fixture(scope="module", params=[BTCUSDT, ETHUSDT], ids=["btcusdt", "ethusdt"])
def recording(request: pytest.FixtureRequest) -> Recording:
    """Read each recording once."""
    return Recording(request.param, text_of(request.param), list(recorded_feed([request.param])))


def exact(message: FeedMessage) -> Any:
    """Return the payload, with numbers as they are written."""
    return json.loads(message.payload, parse_float=Decimal)


def digits(value: Decimal) -> str:
    """Return the number as it is written in JSON."""
    return format(value, "f")


def test_every_trade_is_published_once_in_order_with_its_own_digits(recording: Recording) -> None:
    """The price updates are the file's trades, to the last digit of price and quantity."""
    recorded = re.findall(
        r'"s":"(\w+)","t":(\d+),"p":"([0-9.]+)","q":"([0-9.]+)","T":(\d+),"m":(true|false)',
        recording.text,
    )
    assert len(recorded) == CONTENTS[recording.path].trades == recording.text.count("@trade")

    prices = recording.of_kind(Kind.PRICE)

    published = re.findall(
        r'"stock_code":"(\w+)","price":([0-9.]+),.*?"trade_id":(\d+),"quantity":([0-9.]+),'
        r'"buyer_is_maker":(true|false)',
        "\n".join(message.payload.decode() for message in prices),
    )
    assert published == [
        (symbol, price, trade_id, quantity, maker)
        for symbol, trade_id, price, quantity, _traded_at, maker in recorded
    ]


def test_change_percent_and_volume_are_exact(recording: Recording) -> None:
    """Change counts from the first price, volume from zero, neither with a float's error."""
    prices = [exact(message) for message in recording.of_kind(Kind.PRICE)]
    first = Fraction(prices[0]["price"])
    volume = Fraction(0)
    for update in prices:
        volume += Fraction(update["quantity"])
        change = Fraction(update["price"]) - first
        assert Fraction(update["change"]) == change
        assert Fraction(update["volume"]) == volume
        assert abs(Fraction(update["change_percent"]) - change * 100 / first) <= Fraction(1, 20_000)
        assert re.fullmatch(r"-?\d+\.\d{4}", digits(update["change_percent"]))


def test_a_change_too_small_for_a_percentage_is_zero_without_a_sign(tmp_path: Path) -> None:
    """A fall of less than 0.00005 % is 0.0000, not -0.0000."""
    path = write_recording(tmp_path / "r", trade(1, "61234.50"), trade(2, "61234.49"))
    _, fallen = recorded_feed([path])
    assert b'"change":-0.01,"change_percent":0.0000,' in fallen.payload


def test_the_order_book_agrees_with_the_book_tickers(recording: Recording) -> None:
    """Best bid and ask are those of the exchange's own ticker, to the last digit."""
    books = map(exact, recording.of_kind(Kind.ORDERBOOK))
    assert_books_agree_with_tickers(recording.path, books)


def test_each_depth_update_from_the_snapshot_on_gives_ten_levels_a_side(
    recording: Recording,
) -> None:
    """Books have ten levels a side, best first, never crossed, one book for each depth update."""
    books = [exact(message) for message in recording.of_kind(Kind.ORDERBOOK)]
    last_ids = [int(u) for u in re.findall(r'"U":\d+,"u":(\d+)', recording.text)]
    contents = CONTENTS[recording.path]
    assert len(last_ids) == contents.depth_updates
    assert [book["update_id"] for book in books] == last_ids[contents.obsolete_depth_updates :]
    for book in books:
        bids = [level["price"] for level in book["bids"]]
        asks = [level["price"] for level in book["asks"]]
        assert len(bids) == len(asks) == 10
        ladder = [*reversed(bids), *asks]
        assert ladder == sorted(set(ladder))
        assert all(level["quantity"] > 0 for level in book["bids"] + book["asks"])


def test_what_is_published_fits_its_channel(recording: Recording) -> None:
    """The server forwards every publication as it is."""
    for message in recording.feed:
        topic, kind = parse_channel(message.channel)
        assert decode_publication(kind, topic.target, message.payload).text == message.payload


def test_times_of_trades_are_those_of_the_exchange(tmp_path: Path) -> None:
    """The timestamp of a price update is the moment of the trade, in UTC, to the millisecond."""
    path = write_recording(tmp_path / "r", trade(1, "2.0", T=1723161255342))
    (message,) = recorded_feed([path])
    assert exact(message)["timestamp"] == "2024-08-08T23:54:15.342Z"


def test_several_recordings_are_merged_by_receive_time() -> None:
    """The merged feed is in the order of reception, and complete for each recording."""
    merged = list(recorded_feed(CONTENTS))
    assert merged[0].at_seconds == 0
    assert all(a.at_seconds <= b.at_seconds for a, b in pairwise(merged))
    changes = sum(a.channel.split(":")[1] != b.channel.split(":")[1] for a, b in pairwise(merged))
    assert changes > 100
    for path, symbol in ((BTCUSDT, "BTCUSDT"), (ETHUSDT, "ETHUSDT")):
        alone = [(message.channel, message.payload) for message in recorded_feed([path])]
        assert alone == [(m.channel, m.payload) for m in merged if f":{symbol}:" in m.channel]


def test_offsets_are_the_recorders_clock(tmp_path: Path) -> None:
    """A message is due as long after the first one as it was received after it."""
    path = write_recording(
        tmp_path / "r", trade(1, "2.0"), trade(2, "2.0"), trade(3, "2.0"), interval_ns=250_000_000
    )
    assert [message.at_seconds for message in recorded_feed([path])] == [0.0, 0.25, 0.5]


def test_a_clock_set_back_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    """Where the recorder's clock jumps back, messages stay in order and are due at once."""
    path = tmp_path / "r"
    path.write_text(f"2000000000 {trade(1, '2.0')}\n1000000000 {trade(2, '2.0')}\n")
    feed = list(recorded_feed([path]))
    assert [exact(message)["trade_id"] for message in feed] == [1, 2]
    assert [message.at_seconds for message in feed] == [0.0, 0.0]


def test_a_plain_file_reads_as_a_gzipped_one(tmp_path: Path) -> None:
    """Compression is recognised by content, not by name."""
    plain = tmp_path / "plain.gz"
    plain.write_text(text_of(ETHUSDT))
    assert list(islice(recorded_feed([plain]), 500)) == list(islice(recorded_feed([ETHUSDT]), 500))


def test_a_recording_is_read_as_it_is_consumed(tmp_path: Path) -> None:
    """Messages before a damaged line are published first."""
    path = write_recording(tmp_path / "r", trade(1, "2.0"), trade(2, "3.0"), "{")
    feed = recorded_feed([path])
    assert [exact(next(feed))["trade_id"] for _ in range(2)] == [1, 2]
    with pytest.raises(FeedError, match=r"r, line 3: damaged line"):
        next(feed)


def test_streams_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    """Events of unknown streams are skipped."""
    other = json.dumps({"stream": "btcusdt@aggTrade", "data": {"e": "aggTrade"}})
    path = write_recording(tmp_path / "r", other, trade(1, "2.0"), other)
    assert len(list(recorded_feed([path]))) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1723161254000000000", "no space"),
        ("soon {}", "invalid literal"),
        ('1 {"stream":', "damaged line"),
        ("1 7", "damaged line"),
        ("1 []", "damaged line"),
        ("1 {}", "'lastUpdateId' is missing"),
        ('1 {"stream":7}', "7 where str belongs"),
        ('1 {"stream":"btcusdt@trade"}', "'data' is missing"),
        ('1 {"stream":"btcusdt@trade","data":[]}', "damaged line"),
        ('1 {"stream":"btcusdt@bookTicker","data":{"s":"BTCUSDT"}}', "'u' is missing"),
        ('1 {"lastUpdateId":1,"bids":[["1.0"]],"asks":[]}', "not enough values"),
        (f"1 {trade(1, 'NaN')}", "'NaN' is not a decimal number"),
        (f"1 {trade(1, '1e5')}", "'1e5' is not a decimal number"),
        (f"1 {trade(1, '01.5')}", "'01.5' is not a decimal number"),
        (f"1 {trade(1, '-1.5')}", "'-1.5' is not a decimal number"),
        (f"1 {trade(1, '0.00')}", "a trade at price 0"),
        (f"1 {trade(1, '1.0', q=2)}", "damaged line"),
        (f"1 {trade(1, '1.0', t='1')}", "'1' where int belongs"),
        (f"1 {trade(1, '1.0', t=True)}", "True where int belongs"),
        (f"1 {trade(1, '1.0', m='yes')}", "'yes' where bool belongs"),
        (f"1 {trade(1, '1.0', T=10**21)}", "damaged line"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    """The error has the file, the line and the problem."""
    path = tmp_path / "recording"
    path.write_text(f"1 {trade(1, '2.0')}\n{line}\n")
    with pytest.raises(FeedError, match=re.escape(problem)) as raised:
        list(recorded_feed([path]))
    assert str(raised.value).startswith(f"{path}, line 2: ")
    assert (raised.value.path, raised.value.line_number) == (path, 2)


def test_a_symbol_that_is_no_target_is_named(tmp_path: Path) -> None:
    """A symbol that could not be subscribed to is not published."""
    path = write_recording(tmp_path / "r", trade(1, "1.0", symbol="*"))
    with pytest.raises(FeedError, match=r"line 1: invalid target '\*'"):
        list(recorded_feed([path]))


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "followed by something else"])
def test_damaged_gzip_data_is_named(tmp_path: Path, damage: str) -> None:
    """The error says how far the file could be read."""
    intact = gzip.compress("".join(f"{i} {trade(i, '2.0')}\n" for i in range(1, 2_000)).encode())
    path = tmp_path / "r.gz"
    path.write_bytes(
        {
            "cut off": intact[: len(intact) // 2],
            "overwritten": intact[: len(intact) // 2] + bytes(len(intact)),
            "followed by something else": intact + b"something else",
        }[damage]
    )
    with pytest.raises(FeedError, match=r"r\.gz, line \d+: damaged") as raised:
        list(recorded_feed([path]))
    assert 1 <= raised.value.line_number <= 2_000


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    """A missing file is an OSError."""
    with pytest.raises(FileNotFoundError):
        list(recorded_feed([tmp_path / "none"]))


def test_progress_is_told_in_bytes_of_the_files() -> None:
    """All bytes are reported, in many steps."""
    steps: list[int] = []
    for _ in recorded_feed([BTCUSDT, ETHUSDT], on_read=steps.append):
        pass
    assert sum(steps) == BTCUSDT.stat().st_size + ETHUSDT.stat().st_size
    assert len(steps) > 10
    assert min(steps) > 0


def test_a_pipe_is_read_without_progress(tmp_path: Path) -> None:
    """A pipe, which has no position, can be replayed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = write_recording(tmp_path / "r", trade(1, "2.0"), trade(2, "3.0")).read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=[text])
    writer.start()
    steps: list[int] = []
    messages = list(recorded_feed([pipe], on_read=steps.append))
    writer.join()
    assert [exact(message)["trade_id"] for message in messages] == [1, 2]
    assert steps == []


def test_no_recordings_are_an_empty_feed() -> None:
    """The feed of no recordings is empty."""
    assert list(recorded_feed([])) == []


def test_updates_around_the_snapshot_are_joined_to_it(tmp_path: Path) -> None:
    """Updates in the snapshot are dropped; those that overlap or follow it are applied."""
    path = write_recording(
        tmp_path / "r",
        depth(1, 4, {"1.0": "9"}),
        depth(5, 8, {"1.0": "5.50", "0.9": "7.0"}),
        snapshot(6, {"1.0": "6.0"}, {"1.1": "3.0"}),
        depth(9, 9, {"1.0": "0.00"}),
    )
    books = [exact(message) for message in recorded_feed([path])]
    assert [book["update_id"] for book in books] == [8, 9]
    assert [[(str(v["price"]), str(v["quantity"])) for v in book["bids"]] for book in books] == [
        [("1.0", "5.50"), ("0.9", "7.0")],
        [("0.9", "7.0")],
    ]


def test_a_second_snapshot_changes_nothing(tmp_path: Path) -> None:
    """The chain of updates continues past a snapshot that was not needed."""
    path = write_recording(
        tmp_path / "r", snapshot(1), depth(2, 2, {"1.0": "1"}), snapshot(2), depth(3, 3)
    )
    books = [exact(message) for message in recorded_feed([path])]
    assert [len(book["bids"]) for book in books] == [1, 1]


def update_ids(*paths: Path) -> tuple[list[int], list[str]]:
    """Return the update ids of the published books (0 for a trade), and the problems."""
    problems: list[str] = []
    messages = map(exact, recorded_feed(paths, on_problem=problems.append))
    return [message.get("update_id", 0) for message in messages], problems


@pytest.mark.parametrize(
    ("events", "published", "left_out"),
    [
        pytest.param([depth(2, 2), depth(2, 2), depth(3, 3)], [2, 3], 0, id="a repeat"),
        pytest.param([depth(2, 3), depth(3, 5), depth(4, 4)], [3, 5], 0, id="an overlap"),
        pytest.param([depth(2, 2), depth(3, 1), depth(3, 3)], [2, 3], 0, id="ids that run back"),
        pytest.param([depth(3, 4), trade(1, "1")], [0], 1, id="a hole after the snapshot"),
        pytest.param([depth(2, 2), depth(4, 4), trade(1, "1")], [2, 0], 1, id="a hole"),
        pytest.param(
            [depth(2, 2), depth(9, 9), trade(1, "1"), depth(10, 11), snapshot(10), depth(12, 12)],
            [2, 0, 11, 12],
            0,
            id="a reconnect, updates first",
        ),
        pytest.param(
            [depth(2, 2), snapshot(10), depth(11, 11), trade(1, "1"), depth(12, 12)],
            [2, 11, 0, 12],
            0,
            id="a reconnect, the snapshot first",
        ),
        pytest.param(
            [depth(9, 9), depth(20, 20), snapshot(9), depth(21, 21), snapshot(20), depth(22, 22)],
            [21, 22],
            0,
            id="two reconnects, a snapshot each",
        ),
        pytest.param([depth(9, 9), snapshot(7), depth(10, 10)], [], 2, id="a stale snapshot"),
    ],
)
def test_no_book_is_published_over_a_hole(
    tmp_path: Path, events: list[str], published: list[int], left_out: int
) -> None:
    """Trades continue; books resume at the next snapshot that the updates connect to."""
    ids, problems = update_ids(write_recording(tmp_path / "r", snapshot(1), *events))
    assert ids == published
    assert len(problems) == bool(left_out)
    assert all(f"no order book from {left_out} depth updates" in text for text in problems)


def test_recordings_of_one_symbol_are_one_stream(tmp_path: Path) -> None:
    """The second day continues with the book, the volume and the first price of the first day."""
    first = write_recording(tmp_path / "1", snapshot(1), trade(1, "2.0"), depth(2, 2))
    second = write_recording(tmp_path / "2", depth(3, 3), trade(2, "3.0"), start_seconds=86_400)
    ids, problems = update_ids(first, second)
    assert (ids, problems) == ([0, 2, 3, 0], [])
    *_, last = recorded_feed([second, first])
    assert (exact(last)["change"], exact(last)["volume"]) == (Decimal("1.0"), Decimal("0.04"))


def test_a_recording_without_a_snapshot_has_its_trades(tmp_path: Path) -> None:
    """The order books are missing, which is said at the end; memory stays bounded."""
    updates = [depth(number, number) for number in range(1, 2_000)]
    ids, problems = update_ids(write_recording(tmp_path / "r", *updates, trade(1, "2.0")))
    assert ids == [0]
    (problem,) = problems
    assert problem.startswith("BTCUSDT: no order book from 1999 depth updates: ")


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    """Blank lines, answers to the recorder's requests, and byte order marks do no harm."""
    path = tmp_path / "r"
    path.write_bytes(
        b"\xef\xbb\xbf1 " + trade(1, "2.0").encode() + b"\r\n"
        b'\n  \r\n2 {"result":null}\n2 {"result":null,"id":1}\n'
        b'2 {"error":{"code":2,"msg":"no"},"id":1}\n'
        b"\xef\xbb\xbf\n\xef\xbb\xbf3 " + trade(2, "2.0").encode()
    )
    assert [exact(message)["trade_id"] for message in recorded_feed([path])] == [1, 2]


def test_times_may_be_in_microseconds_or_milliseconds(tmp_path: Path) -> None:
    """The unit of both clocks follows from the magnitude."""
    path = tmp_path / "r"
    lines = [
        f"1723161255342000000 {trade(1, '2.0', T=1723161255342)}",
        f"1723161255842000 {trade(2, '2.0', T=1723161255842123)}",
        f"1723161256342 {trade(3, '2.0', T=1723161256342123456)}",
    ]
    path.write_text("\n".join(lines))
    feed = list(recorded_feed([path]))
    assert [message.at_seconds for message in feed] == [0.0, 0.5, 1.0]
    assert [exact(message)["timestamp"] for message in feed] == [
        "2024-08-08T23:54:15.342Z",
        "2024-08-08T23:54:15.842Z",
        "2024-08-08T23:54:16.342Z",
    ]


def test_two_symbols_in_one_recording_are_an_error(tmp_path: Path) -> None:
    """A snapshot has no symbol, so a recording has one symbol only."""
    path = write_recording(tmp_path / "r", trade(1, "2.0"), trade(1, "2.0", symbol="ETHUSDT"))
    with pytest.raises(FeedError, match="line 2: a recording is of one symbol: ETHUSDT after BTC"):
        list(recorded_feed([path]))
