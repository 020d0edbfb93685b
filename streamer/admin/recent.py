"""The last quarter of an hour: a sample of the statistics every 5 s, for the operator's page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn

import attrs
import trio

INTERVAL_SECONDS: Final = 5.0
"""Between two samples. Each costs some four microseconds for each client, as a request for the
statistics does, in several turns of the event loop, between which clients are served."""

KEPT_SECONDS: Final = 900.0

_MAX_SAMPLES: Final = round(KEPT_SECONDS / INTERVAL_SECONDS)


@attrs.frozen(kw_only=True)
class Sample:
    """The load of the server over one interval; what is not known is None.

    Rates are None in the first sample, and where a worker did not answer or was replaced.
    """

    at: float
    """When it was taken: seconds since 1970."""
    received_per_second: float | None
    """Publications that were passed on."""
    sent_per_second: float | None
    """Messages written, to all clients."""
    conflated_per_second: float | None
    dropped_per_second: float | None
    flush_seconds: float | None
    """The mean time of a flush; None without one."""
    flush_window_seconds: float | None
    """How long messages waited for the last flush."""
    longest_pause_seconds_last_minute: float | None
    """The longest pause of the event loop."""
    redis_round_trip_seconds: float | None
    connections: int | None
    blocked_clients: int | None
    messages_queued: int | None


@attrs.frozen
class _Counts:
    """Counters, each since the start."""

    taken_seconds: float
    """When they were read, on trio's clock."""
    processes: tuple[int | None, ...]
    """The ids of the workers whose counts these are together; empty where there are none."""
    received: float | None
    sent: float | None
    conflated: float | None
    dropped: float | None
    flushes: float | None
    flush_seconds: float | None


class Recent:
    """Takes samples of statistics, and keeps those of the last 15 minutes."""

    def __init__(
        self,
        statistics: Callable[[], Awaitable[Mapping[str, Any]]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`statistics` returns the JSON of `/v1/ws/stats`; `clock` gives seconds since 1970."""
        self._statistics = statistics
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=_MAX_SAMPLES)
        self._before: _Counts | None = None

    async def run(self) -> NoReturn:
        """Take samples until cancelled."""
        while True:
            self._take(await self._statistics())
            await trio.sleep(INTERVAL_SECONDS)

    def since(self, seconds: float) -> list[Sample]:
        """Return the samples taken after a time, in seconds since 1970, the oldest first."""
        return [sample for sample in self._samples if sample.at > seconds]

    def _take(self, statistics: Mapping[str, Any]) -> None:
        counts = _counts(statistics)
        before, self._before = self._before, counts

        def rate(name: str) -> float | None:
            if before is None:
                return None
            elapsed_seconds = counts.taken_seconds - before.taken_seconds
            return _quotient(_growth(counts, before, name), elapsed_seconds)

        flush_seconds = None
        if before is not None:
            flush_seconds = _quotient(
                _growth(counts, before, "flush_seconds"), _growth(counts, before, "flushes")
            )
        self._samples.append(
            Sample(
                at=self._clock(),
                received_per_second=rate("received"),
                sent_per_second=rate("sent"),
                conflated_per_second=rate("conflated"),
                dropped_per_second=rate("dropped"),
                flush_seconds=flush_seconds,
                flush_window_seconds=_find(statistics, "batching", "window_seconds_last"),
                longest_pause_seconds_last_minute=_find(
                    statistics, "loop", "longest_pause_seconds_last_minute"
                ),
                redis_round_trip_seconds=_find(statistics, "redis", "probe_round_trip_seconds"),
                connections=_find(statistics, "active_connections"),
                blocked_clients=_find(statistics, "hub", "blocked_clients"),
                messages_queued=_find(statistics, "messages_queued"),
            )
        )


def _counts(statistics: Mapping[str, Any]) -> _Counts:
    workers = statistics.get("workers", ())
    if any(worker["statistics"] is None for worker in workers):
        # The counts of the others would be too small now, and grow too much when it is back.
        statistics = {}
    dropped = _find(statistics, "messages_dropped")
    return _Counts(
        taken_seconds=trio.current_time(),
        processes=tuple(worker["pid"] for worker in workers),
        received=_find(statistics, "hub", "publications"),
        sent=_find(statistics, "messages_sent"),
        conflated=_find(statistics, "messages_conflated"),
        dropped=None if dropped is None else sum(dropped.values()),
        flushes=_find(statistics, "batching", "flushes"),
        flush_seconds=_find(statistics, "batching", "seconds_total"),
    )


def _find(statistics: Mapping[str, Any], *names: str) -> Any:
    """Return a figure, or None: while no worker answers there is none, and without Redis few."""
    found: Any = statistics
    for name in names:
        found = None if found is None else found.get(name)
    return found


def _growth(counts: _Counts, before: _Counts, name: str) -> float | None:
    now, then = getattr(counts, name), getattr(before, name)
    if now is None or then is None or counts.processes != before.processes:
        return None
    return float(now - then)


def _quotient(growth: float | None, divisor: float | None) -> float | None:
    return growth / divisor if growth is not None and divisor else None
