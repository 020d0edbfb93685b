"""Session records in Redis, for whichever server the client comes back to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import structlog

from streamer.broker.connect import Command, RedisConnectionError, RedisReplyError
from streamer.broker.keys import session_key
from streamer.broker.requests import RedisClient
from streamer.hub.sessions import (
    SessionRecord,
    StoreUnavailableError,
    decode_record,
    encode_record,
)

log = structlog.get_logger()


class RedisSessions:
    """One key for each session, which expires by itself."""

    def __init__(self, commands: RedisClient, *, lifetime_seconds: float) -> None:
        self._commands = commands
        self._lifetime_seconds = math.ceil(lifetime_seconds)

    async def save(self, records: Sequence[SessionRecord]) -> None:
        """Keep these, each for the session lifetime from now on."""
        await self._execute(
            [
                (
                    "SET",
                    session_key(record.session_id),
                    encode_record(record),
                    "EX",
                    self._lifetime_seconds,
                )
                for record in records
            ]
        )

    async def load(self, session_id: str) -> SessionRecord | None:
        """The record of a session, if it is still kept."""
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
