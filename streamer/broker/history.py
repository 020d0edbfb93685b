"""Read from Redis a topic's position and its recent publications.

Producers that use `streamer.publisher` write both in one step with the publication. One script per
topic returns position and publications as of the same moment. Anybody may have written to these
keys, so invalid entries are reported and left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Final, TypeGuard

import attrs

from streamer.broker.connect import Command, RedisReplyError
from streamer.broker.keys import history_key, position_key
from streamer.broker.replies import is_passing
from streamer.broker.requests import RedisClient
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind, Topic
from streamer.slices import Slices

NEWEST_ENTRIES: Final = 32
"""Newest entries that are read of a topic in another epoch. A kind that has none among them is
looked up by itself."""

LEAST_ENTRIES_PER_READ: Final = 100
"""A lower bound, so that missed publications are read in few round trips even if the server itself
keeps a short history."""

ENTRIES_PER_ROUND_TRIP: Final = 250
"""The most that is read of one topic at once. Redis serves nobody else while it carries out what
was sent together: a hundred histories of 5000 entries take it seconds, and the reader gives up."""

Entry = tuple[Kind, int, bytes]
"""Kind, sequence and JSON text of one publication."""


@attrs.frozen
class TopicHistory:
    """The position and the publications that Redis had of a topic at one moment."""

    position: Position
    follows: bool
    """Whether the position that was asked for is in the same epoch, maybe by another name."""
    entries: Sequence[Entry]
    """If `follows`, the publications after that position, oldest first, up to the limit; otherwise
    the newest. Their texts are as they were published: not validated."""
    end: int
    """The sequence up to which `entries` has everything that Redis has."""
    last: Sequence[Entry] = ()
    """If publications are missing before `entries`, the last ones of kinds that it has none of."""


@attrs.frozen
class Unanswered:
    """Redis cannot answer about one topic now; it may do so later."""

    reason: str


@attrs.frozen
class HistoryQuery:
    """A question about one topic: its position, and the publications after `after`."""

    topic: Topic
    after: Position
    digest: str = ""
    """SHA-1 in hex of the publication at `after`, as Redis carried it, if it is known."""
    may_begin: bool = False
    """Whether Redis must begin a new epoch if it is behind `after`, or has a publication there
    whose digest is not `digest`."""
    had_position: bool = False
    """Whether it must also begin one if it has no position any more."""


class RedisHistory:
    """Reads positions and histories; up to 100 topics share a round trip."""

    def __init__(
        self,
        commands: RedisClient,
        on_unreadable: Callable[[Topic, str], None],
        *,
        entries_per_read: int,
    ) -> None:
        """`on_unreadable` is called with a topic and the reason why its data is invalid.

        `entries_per_read` is the most that a call reads of a topic.
        """
        self._commands = commands
        self._on_unreadable = on_unreadable
        self.entries_per_read = entries_per_read
        self._script = files("streamer.broker").joinpath("history.lua").read_bytes()
        self._digest = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()

    async def read(
        self, queries: Sequence[HistoryQuery], new_epoch: str
    ) -> list[TopicHistory | Unanswered | None]:
        """Return the records of topics, None for those that have no valid position.

        `new_epoch` begins for topics of which Redis has lost data. Raises RedisConnectionError.
        """
        records = await self.read_part(queries, new_epoch)
        read = ENTRIES_PER_ROUND_TRIP
        unfinished = {n: record for n, record in enumerate(records) if _is_unfinished(record)}
        while unfinished and read < self.entries_per_read:
            rest = [
                HistoryQuery(queries[index].topic, Position(record.position.epoch, record.end))
                for index, record in unfinished.items()
            ]
            parts = await self.read_part(rest, new_epoch, most=self.entries_per_read - read)
            read += ENTRIES_PER_ROUND_TRIP
            for index, part in zip(list(unfinished), parts, strict=True):
                whole = _joined(unfinished.pop(index), part)
                if whole is not None:
                    records[index] = whole
                    if _is_unfinished(whole):
                        unfinished[index] = whole
        return records

    async def read_part(
        self, queries: Sequence[HistoryQuery], new_epoch: str, *, most: int | None = None
    ) -> list[TopicHistory | Unanswered | None]:
        """Do what `read` does in one round trip, which may read less of long histories.

        `most` bounds the publications of each further.
        """
        most = min(ENTRIES_PER_ROUND_TRIP, self.entries_per_read if most is None else most)
        commands = [self._command(query, new_epoch, most) for query in queries]
        replies = await self._commands.execute_many(commands)
        if any(map(_lacks_script, replies)):
            (loaded,) = await self._commands.execute_many([("SCRIPT", "LOAD", self._script)])
            if isinstance(loaded, RedisReplyError):
                # An ACL with EVALSHA, but without SCRIPT LOAD: no later question has an answer.
                replies = [loaded if _lacks_script(reply) else reply for reply in replies]
            else:
                replies = await self._commands.execute_many(commands)
        records = []
        slices = Slices()  # decoding a long history takes a millisecond, and there may be 100
        for query, reply in zip(queries, replies, strict=True):
            records.append(self._record(query, reply, most))
            await slices.end_if_long()
        return records

    async def announce_names(self, names: Sequence[tuple[Topic, str, str]]) -> None:
        """Store another name by which clients know an epoch, for other servers.

        `names` has (topic, name, epoch) for each.

        Raises RedisConnectionError.
        """
        await self._commands.execute_many(
            [
                ("HSET", position_key(str(topic)), f"was:{name}", epoch)
                for topic, name, epoch in names
            ]
        )

    def _command(self, query: HistoryQuery, new_epoch: str, most: int) -> Command:
        topic = str(query.topic)
        return (
            "EVALSHA",
            self._digest,
            2,
            position_key(topic),
            history_key(topic),
            query.after.epoch,
            query.after.sequence,
            most,
            NEWEST_ENTRIES,
            new_epoch if query.may_begin else "",
            query.digest,
            int(query.had_position),
            *(kind for kind in query.topic.kinds if not kind.is_event),
        )

    def _record(
        self, query: HistoryQuery, reply: Any, most: int
    ) -> TopicHistory | Unanswered | None:
        topic = query.topic
        if isinstance(reply, RedisReplyError):
            if is_passing(reply):
                # It may have positions and return them later: a Redis that still loads its data
                # already accepts subscriptions. The other topics may be answered: a replica, say,
                # only refuses to begin an epoch.
                return Unanswered(f"Redis cannot read positions now: {reply}")
            # An ACL without scripts, or a key of another type: treated as no position.
            self._on_unreadable(topic, f"position not read: {reply}")
            return None
        if not reply:
            return None
        epoch, sequence, follows, found, *rest = reply
        try:
            position = Position(epoch.decode(), sequence)
        except (TypeError, ValueError) as error:
            self._on_unreadable(topic, f"position is {epoch[:80]!r} {sequence!r}: {error}")
            return None
        least = query.after.sequence if follows else 0
        entries: list[Entry] = []
        for item in found:
            entry = _entry(topic, item)
            if entry is None or not least < entry[1] <= position.sequence:
                self._on_unreadable(topic, f"history entry {item[0]!r} of kind {item[1][:80]!r}")
                continue
            least = entry[1]
            entries.append(entry)
        end = position.sequence
        if follows and len(found) >= most:
            end = min(found[-1][0], end)
        last = [entry for item in (rest[0] if rest else ()) if (entry := _entry(topic, item))]
        return TopicHistory(position, bool(follows), entries, end, last)


def _is_unfinished(record: TopicHistory | Unanswered | None) -> TypeGuard[TopicHistory]:
    return (
        isinstance(record, TopicHistory)
        and record.follows
        and record.end < record.position.sequence
    )


def _joined(
    record: TopicHistory, part: TopicHistory | Unanswered | None
) -> TopicHistory | Unanswered | None:
    """Return a record with what was read after it; None if that does not follow any more."""
    if not isinstance(part, TopicHistory):
        return part
    if part.position.epoch != record.position.epoch:
        return None
    return attrs.evolve(part, entries=[*record.entries, *part.entries], last=record.last)


def _lacks_script(reply: Any) -> bool:
    return isinstance(reply, RedisReplyError) and str(reply).startswith("NOSCRIPT ")


def _entry(topic: Topic, item: Any) -> Entry | None:
    sequence, kind, text = item
    try:
        known = Kind(kind.decode())
    except ValueError:
        return None
    return (known, sequence, text) if known in topic.kinds else None
