"""Recordings of any feed as a feed of publications, by a mapping."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Final

from streamer.feeds.feed import FeedMessage
from streamer.feeds.mapper import Mapper
from streamer.feeds.mapping import FeedMapping
from streamer.feeds.recording_lines import read_lines

_NS_PER_SECOND: Final = 1e9
_MAX_PROBLEMS: Final = 20
"""Different problems that are reported; a damaged file may have any number."""


def mapped_feed(
    paths: Iterable[Path],
    mapping: FeedMapping,
    *,
    on_read: Callable[[int], object] = lambda _bytes: None,
    on_problem: Callable[[str], object] = lambda _problem: None,
) -> Iterator[FeedMessage]:
    """Merge recordings into one feed by receive time, at the pace of their recorder's clock.

    Changes of an order book are published only if they follow a whole one, also over the files of
    several days. `on_read` is called as by `read_lines`; `on_problem`, at the end, with a text for
    each kind of bad message, and for changes that were withheld. Raises FeedError if a recording is
    damaged, OSError if it cannot be opened.
    """
    problems: Counter[str] = Counter()

    def note(key: str, reason: str) -> None:
        problem = f"{key}: {reason}"
        if problem in problems or len(problems) < _MAX_PROBLEMS:
            problems[problem] += 1

    mapper = Mapper(mapping, on_problem=note)
    start_ns: int | None = None
    latest_ns = 0
    recordings = (read_lines(path, on_read=on_read) for path in paths)
    for line in heapq.merge(*recordings, key=attrgetter("received_ns")):
        for channel, payload in mapper.map(line.text, line.received_ns, line.origin):
            # If the recorder's clock was set back, the file's order is still that of the events.
            latest_ns = max(latest_ns, line.received_ns)
            start_ns = latest_ns if start_ns is None else start_ns
            yield FeedMessage((latest_ns - start_ns) / _NS_PER_SECOND, channel, payload)
    for problem, count in problems.items():
        on_problem(f"{problem} ({count} times)")
    if mapper.counts.withheld:
        on_problem(f"{mapper.counts.withheld} changes of order books follow no whole book")
