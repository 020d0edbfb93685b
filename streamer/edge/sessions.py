"""Sessions that can be restored: what a client had, kept for a while after it has gone.

A record says what was subscribed to, and up to where the client is known to have received it: what
had been sent before the last ping that it answered. It is kept here, and where there is a Redis
also there, so that another server can restore the session, or this one after a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final, NoReturn

import structlog
import trio

from streamer.hub.outbox import Outbox
from streamer.hub.sessions import (
    SessionRecord,
    SessionStore,
    StoreUnavailableError,
    decode_record,
    encode_record,
    record_session,
)

_SAVE_INTERVAL_SECONDS: Final = 1.0
"""Changes of live sessions are written together so often: what a crash can cost of them."""

_RECORDS_PER_SAVE: Final = 100
"""Written at once, so that a flood of them holds up nobody for long."""

log = structlog.get_logger()


class RestorableSessions:
    """Keeps records of sessions, live ones and those that have ended."""

    def __init__(
        self,
        live: Callable[[str], Outbox | None],
        store: SessionStore | None,
        *,
        lifetime_seconds: float,
    ) -> None:
        """`live` looks up a client that is connected now; `store` is shared with other servers."""
        self._live = live
        self._store = store
        self._lifetime_seconds = lifetime_seconds
        self._ended: dict[str, tuple[float, bytes]] = {}
        """With when to forget each, in that order."""
        self._changed: dict[str, None] = {}
        """Sessions whose record in the store is out of date."""

    def changed(self, session_id: str) -> None:
        """A live session is not what was last kept of it."""
        if self._store is not None:
            self._changed[session_id] = None

    def ended(self, outbox: Outbox) -> None:
        """A client is about to be removed; from now on the lifetime of its session runs."""
        record = record_session(outbox)
        if record.subscriptions:
            deadline = trio.current_time() + self._lifetime_seconds
            # As JSON: one object where the record is dozens, of each client that has ever left.
            self._ended[record.session_id] = (deadline, encode_record(record))
            self.changed(record.session_id)

    async def load(self, session_id: str) -> SessionRecord | None:
        """The record of a session, or None where there is none (any more)."""
        record = self._here(session_id)
        if record is None and self._store is not None:
            try:
                record = await self._store.load(session_id)
            except StoreUnavailableError as error:
                log.warning("session not loaded", reason=str(error))
        return record

    def _here(self, session_id: str) -> SessionRecord | None:
        # One that is being closed has ended, though it is still there: it holds nothing any more.
        if session_id in self._ended:
            deadline, record = self._ended[session_id]
            return decode_record(record) if deadline > trio.current_time() else None
        outbox = self._live(session_id)
        return None if outbox is None else record_session(outbox)

    async def save(self) -> None:
        """Write to the store what has changed; if it is away, later."""
        while self._store is not None and self._changed:
            some = list(islice(self._changed, _RECORDS_PER_SAVE))
            for session_id in some:
                del self._changed[session_id]
            records = [record for record in map(self._here, some) if record is not None]
            try:
                await self._store.save(records)
            except StoreUnavailableError as error:
                log.warning("sessions not saved", reason=str(error))
                self._changed |= dict.fromkeys(some)
                return

    async def run(self) -> NoReturn:
        """Save and forget, for ever."""
        while True:
            await trio.sleep(_SAVE_INTERVAL_SECONDS)
            await self.save()
            now = trio.current_time()
            for session_id, (deadline, _) in list(self._ended.items()):
                if deadline > now:
                    break
                del self._ended[session_id]
