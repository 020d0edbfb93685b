"""Session records in Redis, which all servers share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from streamer.broker.connect import (
    Command,
    RedisConnectionError,
    RedisReplyError,
    unexpected_reply,
)
from streamer.broker.keys import session_key
from streamer.broker.requests import RedisClient
from streamer.session_store import StoreUnavailableError


class RedisSessions:
    """A `SessionStore` with a key for each session, which expires by itself."""

    def __init__(self, client: RedisClient, *, lifetime_seconds: float) -> None:
        self._client = client
        self._lifetime_seconds = math.ceil(lifetime_seconds)

    async def save(self, records: Mapping[str, bytes]) -> None:
        """Keep records by session id, each for the session lifetime from now on.

        Raises StoreUnavailableError.
        """
        await self._execute(
            [
                ("SET", session_key(session_id), record, "EX", self._lifetime_seconds)
                for session_id, record in records.items()
            ]
        )

    async def forget(self, session_ids: Sequence[str]) -> None:
        """Delete records before their time. Raises StoreUnavailableError."""
        await self._execute([("DEL", session_key(session_id)) for session_id in session_ids])

    async def load(self, session_id: str) -> bytes | None:
        """Return the record of a session, or None if there is none.

        Raises StoreUnavailableError.
        """
        (record,) = await self._execute([("GET", session_key(session_id))])
        if record is not None and not isinstance(record, bytes):
            raise StoreUnavailableError(str(unexpected_reply(record)))
        return record

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        try:
            replies = await self._client.execute_many(commands)
        except RedisConnectionError as error:
            raise StoreUnavailableError(str(error)) from error
        for reply in replies:
            if isinstance(reply, RedisReplyError):
                raise StoreUnavailableError(str(reply))
        return replies
