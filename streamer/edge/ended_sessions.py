"""The records of sessions that have ended, within bounds of time and bytes."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from itertools import islice, takewhile
from typing import Final

import attrs
import trio

_OVERHEAD_BYTES: Final = 400
"""The memory of a record besides its own bytes, roughly."""
_KEPT_AFTER_CLEANUP: Final = 0.9
"""The share of the bytes that is kept when there are too many, so that not every new record has to
search for the address that holds the most."""

_EXPIRED_AT_ONCE: Final = 1000
"""Records that are forgotten in one step: a few milliseconds."""


@attrs.frozen
class _Ended:
    deadline: float
    """The time when it is forgotten, on trio's clock."""
    address: str
    record: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.record) + _OVERHEAD_BYTES


class EndedSessions:
    """Keeps encoded records for their lifetime, or until all are more than `max_bytes`.

    Then the oldest ones of the address that holds the most are dropped first: a client that
    reconnects all the time loses its own records rather than those of others.
    """

    def __init__(self, *, lifetime_seconds: float, max_bytes: int) -> None:
        self._lifetime_seconds = lifetime_seconds
        self._max_bytes = max_bytes
        self._ended: dict[str, _Ended] = {}
        """By session id, in the order of their deadlines."""
        self._by_address: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._bytes_by_address: Counter[str] = Counter()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._ended)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._ended

    @property
    def size_bytes(self) -> int:
        """The bytes of all records."""
        return self._bytes

    def get(self, session_id: str) -> bytes | None:
        """Return a record, or None if it has expired."""
        ended = self._ended.get(session_id)
        return None if ended is None or ended.deadline <= trio.current_time() else ended.record

    def add(self, session_id: str, record: bytes, *, address: str) -> list[str]:
        """Keep a record; return the ids of the sessions that were dropped for it."""
        self._remove(session_id)
        deadline = trio.current_time() + self._lifetime_seconds
        ended = self._ended[session_id] = _Ended(deadline, address, record)
        self._by_address[address][session_id] = None
        self._bytes_by_address[address] += ended.size_bytes
        self._bytes += ended.size_bytes
        return self._make_room() if self._bytes > self._max_bytes else []

    def _make_room(self) -> list[str]:
        """Drop records until there is room for some more; return the ids of their sessions."""
        # One look at all addresses for all that are dropped: there may be as many as records.
        largest = [
            (-size_bytes, age, address)
            for age, (address, size_bytes) in enumerate(self._bytes_by_address.items())
        ]
        heapq.heapify(largest)
        dropped: list[str] = []
        while self._bytes > self._max_bytes * _KEPT_AFTER_CLEANUP:
            _, age, address = heapq.heappop(largest)
            dropped += self._drop_oldest(address)
            if size_bytes := self._bytes_by_address.get(address):
                heapq.heappush(largest, (-size_bytes, age, address))
        return dropped

    def _drop_oldest(self, address: str) -> list[str]:
        """Drop a tenth of the records of an address, the oldest; return their sessions' ids."""
        sessions = self._by_address[address]
        oldest = list(sessions)[: len(sessions) // 10 + 1]
        for session_id in oldest:
            self._remove(session_id)
        return oldest

    def expire(self) -> list[str]:
        """Forget records whose lifetime is over, a bounded number; return their sessions' ids.

        Thousands end together if their clients have left together.
        """
        now = trio.current_time()
        ended = takewhile(lambda item: item[1].deadline <= now, self._ended.items())
        expired = [session_id for session_id, _ in islice(ended, _EXPIRED_AT_ONCE)]
        for session_id in expired:
            self._remove(session_id)
        return expired

    def _remove(self, session_id: str) -> None:
        ended = self._ended.pop(session_id, None)
        if ended is None:
            return
        self._bytes -= ended.size_bytes
        self._bytes_by_address[ended.address] -= ended.size_bytes
        sessions = self._by_address[ended.address]
        del sessions[session_id]
        if not sessions:
            del self._by_address[ended.address], self._bytes_by_address[ended.address]
