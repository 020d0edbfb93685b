"""What Redis keeps for a topic's readers: its position and its recent publications.

Producers that use `streamer.publisher` write both, in one step with the publication; this
reads them. One script per topic gives position and publications of one moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

import attrs
import structlog
import trio

from streamer.broker.connect import Command, RedisConnectionError, RedisReplyError
from streamer.broker.keys import history_key, position_key
from streamer.broker.replies import is_passing
from streamer.broker.requests import RedisClient
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind, Topic

NEWEST_ENTRIES: Final = 32
"""How far back the last known value of each kind is looked for."""

log = structlog.get_logger()

Entry = tuple[Kind, int, bytes]
"""Kind, sequence and JSON text of one publication."""


@attrs.frozen
class TopicHistory:
    """What Redis knew of a topic at one moment."""

    position: Position
    follows: bool
    """Whether the position that was asked for is in the same epoch, maybe by another name."""
    entries: Sequence[Entry]
    """If so, what was published after it, oldest first, up to the limit; else the newest."""

    @property
    def latest(self) -> list[Entry]:
        """The newest of each kind that has a last known value."""
        newest = {entry[0]: entry for entry in self.entries if not entry[0].is_event}
        return list(newest.values())


@attrs.frozen
class HistoryQuery:
    """A question after one topic."""

    topic: Topic
    after: Position
    may_have_lost: bool = False
    """Whether Redis knew the topic at `after` and must begin a new epoch if it is behind that."""


class RedisHistory:
    """Reads positions and histories; each call is one round trip for up to 100 topics."""

    def __init__(self, commands: RedisClient, *, history_length: int) -> None:
        self._commands = commands
        self._history_length = history_length
        self._script = files("streamer.broker").joinpath("history.lua").read_bytes()
        self._digest = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()

    async def read(
        self, queries: Sequence[HistoryQuery], new_epoch: str
    ) -> list[TopicHistory | None]:
        """The records of topics, None for those that have no position.

        `new_epoch` begins where Redis has lost what it had. Raises RedisConnectionError.
        """
        commands = [self._command(query, new_epoch) for query in queries]
        replies = await self._commands.execute_many(commands)
        if any(isinstance(r, RedisReplyError) and str(r).startswith("NOSCRIPT") for r in replies):
            await self._commands.execute_many([("SCRIPT", "LOAD", self._script)])
            replies = await self._commands.execute_many(commands)
        records = []
        for reply in replies:
            records.append(self._record(reply))
            # A long history takes a millisecond, and there may be a hundred.
            await trio.lowlevel.checkpoint()
        return records

    async def tell_names(self, names: Sequence[tuple[Topic, str, str]]) -> None:
        """Let other servers know by which other name clients know an epoch: (topic, name, epoch).

        Raises RedisConnectionError.
        """
        await self._commands.execute_many(
            [
                ("HSET", position_key(str(topic)), f"was:{name}", epoch)
                for topic, name, epoch in names
            ]
        )

    def _command(self, query: HistoryQuery, new_epoch: str) -> Command:
        topic = str(query.topic)
        return (
            "EVALSHA",
            self._digest,
            2,
            position_key(topic),
            history_key(topic),
            query.after.epoch,
            query.after.sequence,
            self._history_length,
            NEWEST_ENTRIES,
            new_epoch if query.may_have_lost else "",
        )

    def _record(self, reply: Any) -> TopicHistory | None:
        if isinstance(reply, RedisReplyError):
            if is_passing(reply):
                # It may have positions, and will say so: a Redis that still loads its data, say,
                # already lets one subscribe.
                raise RedisConnectionError(f"Redis cannot tell positions now: {reply}")
            # An ACL without scripts, say: then Redis keeps no positions for us.
            log.warning("position not read", reason=str(reply))
            return None
        if not reply:
            return None
        epoch, sequence, follows, entries = reply
        return TopicHistory(
            Position(epoch.decode(), sequence),
            bool(follows),
            [(Kind(kind.decode()), number, text) for number, kind, text in entries],
        )
