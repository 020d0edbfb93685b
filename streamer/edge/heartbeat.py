"""The heartbeat of all connections, from one task.

A task per client that only waits would cost more memory than everything else that a quiet client
needs. All intervals are equal, so two queues in order of time are enough: one of clients to ping,
and one of clients that must answer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NoReturn, Protocol

import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.edge.session_ids import short_hash

_PINGS_PER_TURN: Final = 100
"""Pings sent before other tasks have a turn: about a millisecond."""

_ANSWERS_PER_TURN: Final = 1000
"""Clients whose answer is looked for before other tasks have a turn."""

log = structlog.get_logger()


class Pinged(Protocol):
    """A session, as the heartbeat sees it."""

    @property
    def session_id(self) -> str:
        """The id of the session."""

    @property
    def is_ending(self) -> bool:
        """Whether the connection is broken or being closed."""

    def ping(self) -> None:
        """Send a ping."""

    def is_silent_since(self, seconds: float) -> bool:
        """Whether the client has given no sign of life since then, on trio's clock."""

    def give_up(self) -> None:
        """Cut the connection."""


class Heartbeat:
    """Pings every client at an interval and cuts off those that do not answer in time."""

    def __init__(self, *, interval_seconds: float, timeout_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._log = BoundedLog(log.info)
        # Both in the order of their times: an added entry is always due after all others. To find
        # the first of a dict takes as long as there were entries before it.
        self._to_ping: OrderedDict[Pinged, float] = OrderedDict()
        """When each client is pinged next."""
        self._to_answer: OrderedDict[Pinged, float] = OrderedDict()
        """Clients whose answer is not due yet, with the time of their ping."""

    def add(self, session: Pinged) -> None:
        """Add a client that has just connected."""
        self._to_ping[session] = trio.current_time() + self._interval_seconds

    def remove(self, session: Pinged) -> None:
        """Forget a client whose session has ended."""
        self._to_ping.pop(session, None)
        self._to_answer.pop(session, None)

    async def run(self) -> NoReturn:
        """Ping, and cut off the silent, until cancelled."""
        while True:
            await self._cut_off_silent()
            await self._ping_due()
            soonest = trio.current_time() + min(self._interval_seconds, self._timeout_seconds)
            if self._to_ping:
                soonest = min(soonest, next(iter(self._to_ping.values())))
            if self._to_answer:
                asked = next(iter(self._to_answer.values()))
                soonest = min(soonest, asked + self._timeout_seconds)
            # A client that is added during the sleep is due after its end.
            await trio.sleep_until(soonest)

    async def _ping_due(self) -> None:
        pinged = 0
        while self._to_ping:
            session, due = next(iter(self._to_ping.items()))
            now = trio.current_time()
            if due > now:
                return
            del self._to_ping[session]
            self._to_ping[session] = now + self._interval_seconds
            if not session.is_ending:
                session.ping()
                self._to_answer.setdefault(session, now)
            pinged += 1
            if pinged % _PINGS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    async def _cut_off_silent(self) -> None:
        now = trio.current_time()
        looked_at = 0
        while self._to_answer:
            looked_at += 1
            if looked_at % _ANSWERS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
                continue  # the next one may have left meanwhile
            session, asked = next(iter(self._to_answer.items()))
            if asked + self._timeout_seconds > now:
                return
            del self._to_answer[session]
            if not session.is_ending and session.is_silent_since(asked):
                self._log("silent", "client silent", session=short_hash(session.session_id))
                session.give_up()
