"""The table of stocks and markets: rows, columns that fit, and ages, in text."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from rich.console import Console

from streamer.cli.board import COLUMNS, Board, age_text
from streamer.client import Account, ClientStatistics, Data, Topic, Verifier, decode_server
from streamer.client.messages import Gap
from streamer.protocol.messages import GapReason

NOW: Final = 1_723_161_255.0
"""2024-08-08T23:54:15Z."""
STATISTICS: Final = ClientStatistics(
    connected=True,
    session_id="s",
    connections=1,
    subscriptions=1,
    buffered_messages=0,
    last_problem=None,
)


def account() -> Account:
    """Return an empty account."""
    return Verifier(None).account()


def message(topic: str, sequence: int = 1, **members: Any) -> Any:
    """Return a data message as the client delivers it."""
    text = json.dumps(
        {"type": "price_update", "timestamp": "2024-08-08T23:54:12Z", "sequence": sequence}
        | members
    )
    (decoded,) = decode_server(text)
    assert isinstance(decoded, Data)
    decoded.assign_topic(Topic.parse(topic))
    return decoded


def price(topic: str, code: str, number: float, **members: Any) -> Any:
    """Return a price."""
    fields = {"price": number, "change": -1234, "change_percent": -1.5, "volume": 1234567}
    return message(topic, stock_code=code, **fields | members)


def lines(board: Board, width: int, **options: Any) -> list[str]:
    """Return the lines of a table on a screen of this width."""
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(board.render(account(), STATISTICS, width=width, **options))
    shown = capture.get().splitlines()
    assert all(len(line) <= width for line in shown)
    return [line.rstrip() for line in shown]


@pytest.fixture
def board() -> Board:
    """A table of a stock with all its values."""
    board = Board([Topic.parse("stock:005930")], clock=lambda: NOW)
    board.show(price("stock:005930", "005930", 1234567, name="Samsung Electronics"))
    book = {"type": "orderbook_update", "stock_code": "005930"}
    level = {"price": 1234500, "quantity": 1}
    board.show(message("stock:005930", 2, **book, bids=[level], asks=[]))
    return board


def test_a_wide_screen_has_all_columns(board: Board) -> None:
    """Digits are grouped; the age is from the message's own time."""
    header, row, caption = lines(board, 150)
    assert header.split() == [column.name for column in COLUMNS]
    assert row.split() == [
        *("005930", "Samsung", "Electronics", "1,234,567", "-1,234", "-1.5", "%"),
        *("1,234,567", "1,234,500", "-", "2", "3.0", "s"),
    ]
    assert caption.startswith("received 0 · merged 0 · gaps 0")


@pytest.mark.parametrize("width", [1, 5, 11, 12, *range(13, 110, 6)])
def test_a_number_is_shown_whole_or_not_at_all(board: Board, width: int) -> None:
    """Columns are left out by their priority; the price stays as long as it fits."""
    header, row, *_ = lines(board, width)
    if width >= 9 + 2 + 1:
        assert "1,234,567" in row
        known = {"1,234,567", "-1,234", "-1.5", "%", "1,234,500", "-", "2", "3.0", "s"}
        _, *cells = row.split()
        numbers = [cell for cell in cells if cell[0] in "0123456789-+"]
        assert set(numbers) <= known, row
    names = [name for name in header.split() if name in {column.name for column in COLUMNS}]
    kept = {column.priority for column in COLUMNS if column.name in names}
    left_out = {c.priority for c in COLUMNS if c.name not in names} - kept - {0}
    if width >= 20:
        assert not left_out or max(left_out) < min(kept - {0}, default=100)


def test_a_number_that_does_not_fit_is_not_cut(board: Board) -> None:
    """The first digits of a price are another price."""
    for width in range(3, 12):
        assert "…" in lines(board, width)[1].split()
    board.show(price("stock:B", "B", 1e300))
    _, whole, freak, *_ = lines(board, 60)
    assert whole.split()[0] == "005930"
    assert freak.split()[:2] == ["B", "…"]


def test_a_producer_does_not_command_the_terminal() -> None:
    """Nor does it begin another row, or end the table with a code that is of no topic."""
    board = Board([Topic.parse("sector:IT")], clock=lambda: NOW)
    evil = "A\x1b]0;title\x07\x1b[2J\nB\x9b31m\u202eC\ud800*" + "x" * 100
    board.show(price("sector:IT", evil, 5, name=evil))
    _, row, caption = lines(board, 300)
    assert row.startswith("A ]0;title [2J B 31m C *x")
    assert row.count("A ]0;title [2J B 31m C *x") == 2
    assert caption.startswith("received")
    alert: dict[str, Any] = {"type": "alert", "alert_type": "above", "alert_id": 1, "data": {}}
    board.show(message("user:u", **alert, stock_code="A", message="a\x1b[2Jb" + "c" * 99))
    assert f"a [2Jb{'c' * 99} " in lines(board, 300)[2]
    assert "a [2Jbccc" in lines(board, 60)[2]


def test_a_sector_has_a_row_for_each_of_its_stocks() -> None:
    """In the place of the sector; before the first message it has one that waits."""
    board = Board([Topic.parse("sector:IT"), Topic.parse("market:KOSPI")], clock=lambda: NOW)
    assert [line.split()[0] for line in lines(board, 80)[1:3]] == ["sector:IT", "market:KOSPI"]
    assert board.silent == [Topic.parse("sector:IT"), Topic.parse("market:KOSPI")]
    board.show(price("sector:IT", "B", 1))
    board.show(price("sector:IT", "A", 2))
    board.show(price("sector:IT", "B", 3))
    labels = [line.split()[:2] for line in lines(board, 80)[1:4]]
    assert labels == [["B", "3"], ["A", "2"], ["market:KOSPI", "waiting"]]


def test_a_stock_of_two_topics_is_one_row() -> None:
    """An older last value of one does not replace what came by the other."""
    board = Board([Topic.parse("stock:A"), Topic.parse("sector:IT")], clock=lambda: NOW)
    board.show(price("stock:A", "A", 2, timestamp="2024-08-08T23:54:14Z"))
    board.show(price("sector:IT", "A", 1, snapshot=True))
    assert [line.split()[:2] for line in lines(board, 80)[1:-1]] == [["A", "2"]]


def test_a_gap_is_shown_until_the_next_message() -> None:
    """Below the rows, with the topic."""
    topic = Topic.parse("stock:A")
    board = Board([topic], clock=lambda: NOW)
    board.show(Gap(topic.subscription_type, topic.target, GapReason.HISTORY_EXPIRED, "e", 1))
    assert "stock:A: gap, history_expired" in lines(board, 80)
    board.show(price("stock:A", "A", 1))
    assert not any("gap," in line for line in lines(board, 80))


def test_rows_that_do_not_fit_are_counted() -> None:
    """The offset is moved to where the screen is full."""
    board = Board([Topic.parse(f"stock:A{number}") for number in range(9)], clock=lambda: NOW)
    shown = lines(board, 100, height=6, offset=100)
    assert [line.split()[0] for line in shown[1:5]] == ["A5", "A6", "A7", "A8"]
    assert "rows 6-9 of 9" in shown[5]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.9, "59 s"), (61, "1 min"), (7300, "2 h"),
     (90_000, "1 d"), (2 * 365 * 86_400, "2 y")],
)  # fmt: skip
def test_an_age_has_a_unit_that_fits(seconds: float, text: str) -> None:
    """A replay of old data shows years."""
    assert age_text(seconds) == text


def test_a_message_of_a_clock_that_is_ahead_is_new() -> None:
    """Never younger than now; a time that cannot be read is that of the arrival."""
    board = Board([Topic.parse("stock:A"), Topic.parse("stock:B")], clock=lambda: NOW)
    board.show(price("stock:A", "A", 1, timestamp="2030-01-01T00:00:00Z"))
    board.show(price("stock:B", "B", 1, timestamp="now"))
    assert [line.split()[-2:] for line in lines(board, 100)[1:3]] == [["0.0", "s"]] * 2
