"""Counters of faulty publications, and their log lines at a bounded rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.protocol.topics import Topic

_LOG_INTERVAL_SECONDS: Final = 1.0
"""The least time between two lines of one sort: a broken producer must not fill the disk."""

log = structlog.get_logger()


@attrs.frozen
class SourceStatistics:
    """Counters of the publications received from the bus, since the server started."""

    received: int
    rejected: int
    """Publications that were not passed on: invalid, too large, or at a wrong position."""
    last_rejection: str | None
    recovered: int
    """Publications read from the history that had not been received."""
    duplicates: int
    """Publications that had been received before."""
    unrouted: int
    """Messages of channels that had just been released."""
    unreadable: int
    """Positions and history entries in Redis that are not valid."""
    steps_back: int
    """How often the positions of a topic restarted within an epoch."""


class SourceReport:
    """The counters of all topics, and their log lines."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        """`clock` returns seconds, for the rate of log lines."""
        self.recovered = 0
        self.duplicates = 0
        self._rejected = 0
        self._last_rejection: str | None = None
        self._unreadable = 0
        self._steps_back = 0
        self._unreadable_topics: set[Topic] = set()
        self._warn = BoundedLog(log.warning, interval_seconds=_LOG_INTERVAL_SECONDS, clock=clock)

    def reject(self, channel: str, reason: str) -> None:
        """Count a publication that is not passed on."""
        self._rejected += 1
        self._last_rejection = f"{channel}: {reason}"
        self._warn("rejected", "publication rejected", channel=channel, reason=reason)

    def unreadable(self, topic: Topic, reason: str) -> None:
        """Count invalid data in Redis; the first of a topic is logged."""
        self._unreadable += 1
        if topic not in self._unreadable_topics:
            self._unreadable_topics.add(topic)
            self._warn("unreadable", "history not readable", topic=str(topic), reason=reason)

    def step_back(self, topic: Topic, reason: str) -> None:
        """Count a restart of a topic's positions within an epoch."""
        self._steps_back += 1
        self._warn("step back", "positions began anew", topic=str(topic), reason=reason)

    def forget(self, topic: Topic) -> None:
        """Forget a released topic, so that it is logged again if it is reopened."""
        self._unreadable_topics.discard(topic)

    def statistics(self, *, received: int, unrouted: int) -> SourceStatistics:
        """Return the counts up to now, with those of the router."""
        return SourceStatistics(
            received=received,
            rejected=self._rejected,
            last_rejection=self._last_rejection,
            recovered=self.recovered,
            duplicates=self.duplicates,
            unrouted=unrouted,
            unreadable=self._unreadable,
            steps_back=self._steps_back,
        )
