"""Log lines at a bounded rate."""

from __future__ import annotations

from typing import Any

from streamer.bounded_log import BoundedLog


def test_one_line_of_each_key_is_logged_in_an_interval_with_the_count_of_the_others() -> None:
    """A thousand events of two keys make two lines, and the next line counts what was left out."""
    now = 0.0
    lines: list[tuple[str, dict[str, Any]]] = []
    log = BoundedLog(
        lambda event, **fields: lines.append((event, fields)),
        interval_seconds=10,
        clock=lambda: now,
    )
    for number in range(1000):
        log("a", "refused", number=number)
    log("b", "refused", number=0)
    assert lines == [("refused", {"number": 0}), ("refused", {"number": 0})]
    now = 10.0
    log("a", "refused", number=1000)
    log("b", "refused", number=1)
    assert lines[2:] == [
        ("refused", {"number": 1000, "unlogged": 999}),
        ("refused", {"number": 1}),
    ]


def test_the_memory_for_keys_is_bounded() -> None:
    """The oldest of too many keys is forgotten: its next line is logged as if it were the first."""
    lines: list[str] = []
    log = BoundedLog(lines.append, clock=lambda: 0.0)
    for number in range(1000):
        log(str(number), str(number))
    log("0", "again")
    log("999", "not again")
    assert lines[-2:] == ["999", "again"]
    assert len(log._entries) == 100
