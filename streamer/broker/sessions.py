"""Session records in Redis, which all servers share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from streamer.broker.connect import Command, RedisConnectionError, RedisReplyError
from streamer.broker.keys import session_key
from streamer.broker.requests import RedisClient
from streamer.hub.sessions import SessionRecord, StoreUnavailableError, decode_record

log = structlog.get_logger()


class RedisSessions:
    """A store of records with a key for each session, which expires by itself."""

    def __init__(self, commands: RedisClient, *, lifetime_seconds: float) -> None:
        self._commands = commands
        self._lifetime_seconds = math.ceil(lifetime_seconds)

    async def save(self, records: Mapping[str, bytes]) -> None:
        """Keep encoded records by session id, each for the session lifetime from now on."""
        await self._execute(
            [
                ("SET", session_key(session_id), record, "EX", self._lifetime_seconds)
                for session_id, record in records.items()
            ]
        )

    async def forget(self, session_ids: Sequence[str]) -> None:
        """Delete records before their time."""
        await self._execute([("DEL", session_key(session_id)) for session_id in session_ids])

    async def load(self, session_id: str) -> SessionRecord | None:
        """Return the record of a session, or None where there is none."""
        (stored,) = await self._execute([("GET", session_key(session_id))])
        if stored is None:
            return None
        try:
            return decode_record(stored)
        except ValueError as error:
            log.warning("session record not understood", reason=str(error))
            return None

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        try:
            replies = await self._commands.execute_many(commands)
        except RedisConnectionError as error:
            raise StoreUnavailableError(str(error)) from error
        for reply in replies:
            if isinstance(reply, RedisReplyError):
                raise StoreUnavailableError(str(reply))
        return replies
