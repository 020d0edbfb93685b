"""Log lines at a bounded rate: events that clients can cause must not fill a disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import attrs

INTERVAL_SECONDS: Final = 10.0

_MAX_KEYS: Final = 100


@attrs.define
class _Entry:
    logged_seconds: float
    unlogged: int = 0


class BoundedLog:
    """Passes on at most one log line of each key in an interval, and counts those between.

    The next line that is passed on gives in `unlogged` the number of omitted ones. Keys are few (an
    event, a cause); if there are more than 100, the oldest is forgotten.
    """

    def __init__(
        self,
        write: Callable[..., Any],
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`write` takes an event and its fields, as `log.info` does."""
        self._write = write
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def __call__(self, key: str, event: str, **fields: Any) -> None:
        """Log an event, unless one of this key has been logged within the interval."""
        now = self._clock()
        entry = self._entries.get(key)
        if entry is not None and now - entry.logged_seconds < self._interval_seconds:
            entry.unlogged += 1
            return
        if entry is not None and entry.unlogged:
            fields["unlogged"] = entry.unlogged
        self._entries.pop(key, None)
        if len(self._entries) >= _MAX_KEYS:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = _Entry(now)
        self._write(event, **fields)
