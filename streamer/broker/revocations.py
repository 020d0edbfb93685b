"""Revocations of tokens in Redis, which all servers share: one sorted set, by the time they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from streamer.broker.connect import (
    Command,
    RedisConnectionError,
    RedisReplyError,
    unexpected_reply,
)
from streamer.broker.keys import REVOCATIONS_KEY
from streamer.broker.requests import RedisClient

Entry = tuple[bytes, float]
"""A revocation as opaque text, and until when it is kept: seconds since 1970."""

_ENTRIES_PER_READ: Final = 1000


class RedisRevocations:
    """Writes and reads revocations. Its methods raise RedisConnectionError."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def add(self, entries: Sequence[Entry], *, now_seconds: float) -> None:
        """Keep revocations, each to its end, and drop those that have ended."""
        await self._execute(
            [
                ("ZREMRANGEBYSCORE", REVOCATIONS_KEY, "-inf", f"({now_seconds!r}"),
                # GT: a revocation that is repeated must not end sooner for that.
                *(
                    ("ZADD", REVOCATIONS_KEY, "GT", repr(until_seconds), text)
                    for text, until_seconds in entries
                ),
            ]
        )

    async def load(self, *, now_seconds: float) -> list[Entry]:
        """Return all revocations that have not ended."""
        entries: list[Entry] = []
        # From the last to end: entries that end meanwhile do not shift those still to be read.
        for offset in range(0, 2**31, _ENTRIES_PER_READ):
            command = ("ZREVRANGEBYSCORE", REVOCATIONS_KEY, "+inf", repr(now_seconds))
            page = ("WITHSCORES", "LIMIT", offset, _ENTRIES_PER_READ)
            (reply,) = await self._execute([(*command, *page)])
            try:
                found = [
                    (text, float(until_seconds))
                    for text, until_seconds in zip(reply[::2], reply[1::2], strict=True)
                ]
            except (TypeError, ValueError):
                raise unexpected_reply(reply) from None
            entries += found
            if len(found) < _ENTRIES_PER_READ:
                break
        return entries

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        replies = await self._client.execute_many(commands)
        for reply in replies:
            if isinstance(reply, RedisReplyError):
                raise RedisConnectionError(f"Redis refused {commands[-1][0]!r}: {reply}")
        return replies
