"""Places for clients: the place of a silent connection, if there is no other."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final

import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.edge.admission import Admission, Cause
from streamer.edge.served import Served
from streamer.edge.session_ids import short_hash

PROBE_SECONDS: Final = 3.0
"""How long a connection has to answer a ping while a new one waits for its place."""

_FRESH_SECONDS: Final = 1.0
"""A client that sent bytes so recently is not pinged to see whether it is alive."""

_MAX_PROBED: Final = 16
"""Connections that are pinged for one that waits for a place: the longest silent ones."""

_MAX_EXAMINED: Final = 256
"""Connections that are examined for one that waits: thousands may have one address, that of a
proxy, and each takes some microseconds. Others are drawn for the next one that waits."""

log = structlog.get_logger()


class Places:
    """Finds places for clients that come back before their lost connections are noticed."""

    def __init__(self, admission: Admission, sessions: Mapping[str, Served]) -> None:
        """`admission` counts the places; `sessions` are those connected now, by their ids."""
        self._admission = admission
        self._sessions = sessions
        self._log = BoundedLog(log.info)

    async def take(
        self,
        enter: Callable[[], Cause | None],
        rivals: Callable[[], Sequence[Served]],
        session_id: str | None,
    ) -> Cause | None:
        """Call `enter` until it finds a place, or return the cause after some seconds.

        If there is none, the one of `rivals` that the client names by its session's id is ended at
        once. Otherwise the longest silent ones are pinged, and if one does not answer within 3 s,
        the longest silent is ended.
        """
        cause = enter()
        if cause is None:
            return None
        asked_seconds = trio.current_time()
        probed = self._probe(rivals(), session_id)
        if not probed:
            return cause
        with trio.move_on_after(PROBE_SECONDS):
            return await self._wait_for_place(enter)
        for session in probed:
            if not session.is_ending and session.is_silent_since(asked_seconds):
                self._log(
                    "gives way", "silent client gives way", session=short_hash(session.session_id)
                )
                session.give_up()
                with trio.move_on_after(PROBE_SECONDS):
                    return await self._wait_for_place(enter)
                break
        return cause

    def _probe(self, sessions: Sequence[Served], session_id: str | None) -> Sequence[Served]:
        """Ping connections that might be ended for a new one; return the longest silent first."""
        named = self._sessions.get(session_id or "")
        if named is not None and named in sessions:
            named.give_up()
            return [named]
        if len(sessions) > _MAX_EXAMINED:
            sessions = random.sample(sessions, _MAX_EXAMINED)
        fresh_since = trio.current_time() - _FRESH_SECONDS
        silent = [
            session
            for session in sessions
            if not session.is_ending and session.is_silent_since(fresh_since)
        ]
        probed = heapq.nsmallest(_MAX_PROBED, silent, key=attrgetter("last_received_seconds"))
        for session in probed:
            session.ping()
        return probed

    async def _wait_for_place(self, enter: Callable[[], Cause | None]) -> Cause | None:
        while (cause := enter()) is not None:
            await self._admission.wait_left()
        return cause
