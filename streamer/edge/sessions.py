"""Sessions that can be restored: records of connected clients, and of those that have left.

A record has the subscriptions of a client, and the positions that it is known to have received:
those sent before the last ping that it answered. Records are kept here, and also in Redis if there
is one, so that another server can restore the session, or this one after a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.edge.ended_sessions import EndedSessions
from streamer.hub.outbox import Outbox
from streamer.hub.sessions import (
    SessionRecord,
    decode_record,
    encode_session,
    record_session,
)
from streamer.session_store import SessionStore, StoreUnavailableError

_SAVE_INTERVAL_SECONDS: Final = 0.1
"""How long changes of live sessions are collected before they are saved; a crash loses them."""
_RETRY_SECONDS: Final = 1.0
"""The pause after the store was unavailable."""
_SETTLE_SECONDS: Final = 0.15
"""How long another server may take to save the record of a client that has just left it: more than
the save interval, and the way through the store."""
_BYTES_PER_SAVE: Final = 100_000
"""Bytes of records that are encoded and written without a checkpoint: about 10 ms of work."""

log = structlog.get_logger()


class RestorableSessions:
    """Keeps records of sessions, live ones and those that have ended."""

    def __init__(
        self,
        live: Callable[[str], Outbox | None],
        store: SessionStore | None,
        *,
        lifetime_seconds: float,
        max_bytes: int,
    ) -> None:
        """`live` finds a connected client by its session id; servers share the `store`.

        With a lifetime of 0 no session can be restored, and nothing is kept.
        """
        self._live = live
        self._store = store if lifetime_seconds else None
        self._lifetime_seconds = lifetime_seconds
        self._ended = EndedSessions(lifetime_seconds=lifetime_seconds, max_bytes=max_bytes)
        self._changed: dict[str, None] = {}
        """Live sessions whose record in the store is out of date."""
        self._unsaved: dict[str, None] = {}
        """Sessions that have ended since they were saved."""
        self._dropped: dict[str, None] = {}
        """Sessions whose record is to be deleted from the store."""
        self._incomplete: set[str] = set()
        """Sessions whose client waits for the topics of an earlier one."""
        self._session_ended = trio.Event()
        self._warn = BoundedLog(log.warning)

    @property
    def ended_bytes(self) -> int:
        """The bytes of the records of sessions that have ended."""
        return self._ended.size_bytes

    def changed(self, session_id: str) -> None:
        """Note that the record of a live session is out of date."""
        if self._store is not None:
            self._changed[session_id] = None

    def suspend(self, session_id: str) -> None:
        """Keep no record of a session: its client waits for the topics of an earlier one.

        A client whose connection ends before that does not know whether it has them. A record
        without them would be restored as if it were all that the client had asked for.
        """
        if not self._lifetime_seconds:
            return  # no session has a record
        self._incomplete.add(session_id)
        self._changed.pop(session_id, None)
        self._dropped[session_id] = None

    def resume(self, session_id: str) -> None:
        """Keep a record again: the client was answered."""
        self._incomplete.discard(session_id)
        self.changed(session_id)

    def ended(self, outbox: Outbox, *, address: str = "") -> None:
        """Keep the record of a client that is about to be removed, for the session lifetime.

        It is saved at once: the client may be on its way to another server already. `address` is
        the client's, for a fair share of the memory.
        """
        session_id = outbox.name
        self._changed.pop(session_id, None)
        if session_id in self._ended or not self._lifetime_seconds:
            return  # the second step of a close: its subscriptions have already ended
        if session_id in self._incomplete or not outbox.subscriptions:
            self._incomplete.discard(session_id)
            self._dropped[session_id] = None
            return
        # As JSON: one object instead of dozens, for each client that has left.
        record = encode_session(outbox, ended=True)
        dropped = self._ended.add(session_id, record, address=address)
        self._unsaved[session_id] = None
        self._dropped |= dict.fromkeys(dropped)
        for dropped_id in dropped:
            self._unsaved.pop(dropped_id, None)
        self._session_ended.set()

    async def load(self, session_id: str, user_id: str | None = None) -> SessionRecord | None:
        """Return the record of a session, or None if there is none that this user may restore.

        `user_id` is None for an anonymous client. A session of another user is treated like one
        that does not exist, down to the time that the answer takes. Another server may be about to
        save a newer record, so one that is of a live session, or missing, is loaded a second time.

        Raises StoreUnavailableError if it cannot be known whether there is one.
        """
        record = _owned(self._load_here(session_id), user_id)
        if record is not None or self._store is None:
            return record
        try:
            record = _owned(self._decoded(await self._store.load(session_id)), user_id)
            if record is None or not record.ended:
                await trio.sleep(_SETTLE_SECONDS)
                later = self._decoded(await self._store.load(session_id))
                record = _owned(later, user_id) or record
        except StoreUnavailableError as error:
            self._warn("load", "session not loaded", reason=str(error))
            if record is None:
                raise
        return record

    def _load_here(self, session_id: str) -> SessionRecord | None:
        # A client that is being closed has ended, although `live` still finds its empty outbox.
        if session_id in self._ended:
            record = self._ended.get(session_id)
            return None if record is None else decode_record(record)
        outbox = self._live_whole(session_id)
        return None if outbox is None else record_session(outbox)

    def _live_whole(self, session_id: str) -> Outbox | None:
        """Return a connected client that has all the topics of its session."""
        return None if session_id in self._incomplete else self._live(session_id)

    def _decoded(self, encoded: bytes | None) -> SessionRecord | None:
        """Decode a record from the store; one that this version cannot have written is none."""
        try:
            return None if encoded is None else decode_record(encoded)
        except ValueError as error:
            self._warn("record", "session record not understood", reason=str(error))
            return None

    async def save(self) -> None:
        """Save all changes; if the store is unavailable, they are kept for later."""
        await self._save(self._unsaved)
        await self._save(self._changed)

    async def _save(self, changed: dict[str, None]) -> bool:
        """Save these changes; return False if the store is unavailable."""
        dropped, self._dropped = list(self._dropped), {}
        if self._store is None:
            changed.clear()
            return True
        try:
            if dropped:  # if the store is unavailable, they expire there
                await self._store.forget(dropped)
            while changed:
                records = self._take(changed)
                try:
                    await self._store.save(records)
                except StoreUnavailableError:
                    changed |= dict.fromkeys(records)
                    raise
        except StoreUnavailableError as error:
            self._warn("save", "sessions not saved", reason=str(error))
            return False
        return True

    def _take(self, changed: dict[str, None]) -> dict[str, bytes]:
        """Take the records of some of these sessions, in the order of their changes."""
        records: dict[str, bytes] = {}
        size_bytes = 0
        for session_id in list(changed):
            del changed[session_id]
            record = self._encoded(session_id)
            if record is not None:
                records[session_id] = record
                size_bytes += len(record)
            if size_bytes > _BYTES_PER_SAVE:
                break
        return records

    def _encoded(self, session_id: str) -> bytes | None:
        if session_id in self._ended:
            return self._ended.get(session_id)
        outbox = self._live_whole(session_id)
        return None if outbox is None else encode_session(outbox)

    async def run(self) -> NoReturn:
        """Save changes and forget expired records, until cancelled."""
        save_at = trio.current_time() + _SAVE_INTERVAL_SECONDS
        while True:
            with trio.move_on_at(save_at):
                await self._session_ended.wait()
            self._session_ended = trio.Event()
            is_due = trio.current_time() >= save_at
            saved = await self._save(self._unsaved)
            if saved and is_due:
                saved = await self._save(self._changed)
            if not saved:
                await trio.sleep(_RETRY_SECONDS)
            if is_due or not saved:
                save_at = trio.current_time() + _SAVE_INTERVAL_SECONDS
            for session_id in self._ended.expire():
                self._unsaved.pop(session_id, None)


def _owned(record: SessionRecord | None, user_id: str | None) -> SessionRecord | None:
    """Return the record if this user may restore the session, else None."""
    return record if record is not None and record.may_be_restored_by(user_id) else None
