"""Pings between heartbeats, for clients that receive much.

A session that is restored by its URL continues from the last message sent before the last ping that
its client answered. At 40 messages a second, 25 s are 1,000 messages that would be sent again, or
more than the history has. The clients are checked in rounds, a bounded number at a time, by
counters that exist anyway, so sending a message costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import length_hint
from typing import Final, NoReturn

import trio

from streamer.edge.served import Served

_INTERVAL_SECONDS: Final = 0.25
_SESSIONS_PER_TURN: Final = 1000
"""Sessions of few topics that are checked without a checkpoint: a millisecond of work."""
_TOPICS_LIKE_A_SESSION: Final = 16
"""Topics of a session that take as long to check as another session."""
_PINGS_PER_TURN: Final = 50
"""A ping and its answer cost some 200 µs, the new record of the session in Redis included. If more
clients receive much, some of them wait for the next turn, or the heartbeat."""


class Confirmations:
    """Pings the clients that have received much since their last ping."""

    def __init__(self, sessions: Mapping[str, Served]) -> None:
        """`sessions` are those connected now, by their ids."""
        self._sessions = sessions
        self._remaining: Iterator[str] = iter(())
        """The ids of the sessions that are still to be checked in this round."""

    async def run(self) -> NoReturn:
        """Check the sessions, round after round, until cancelled."""
        while True:
            await trio.sleep(_INTERVAL_SECONDS)
            self._take_turn(trio.current_time())

    def _take_turn(self, now_seconds: float) -> None:
        pings = sessions = 0
        for session_id in self._remaining:
            session = self._sessions.get(session_id)
            if session is None:
                continue
            if session.is_confirmation_due(now_seconds):
                session.ping()
                pings += 1
            sessions += 1 + len(session.outbox.subscriptions) // _TOPICS_LIKE_A_SESSION
            if pings == _PINGS_PER_TURN or sessions >= _SESSIONS_PER_TURN:
                break  # the next turn continues here
        if not length_hint(self._remaining):
            self._remaining = iter(list(self._sessions))
