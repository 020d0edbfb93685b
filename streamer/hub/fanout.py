"""Who stands together, and the flush that serves them.

What is done per client decides the cost of everything, so clients that would get the same bytes
are kept together. A *group* is all the clients that hold the same lanes and have been sent the same
of them: a flush makes one frame for the group and writes it to each member. A client that stands
anywhere else (its socket is full, it has just joined, it has a rate of its own) is a *solo*: it has
a position of its own in every stream, and what it has still to get waits in its outbox.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Final

import attrs

from streamer.hub.outbox import Group, Outbox, Subscription
from streamer.hub.streams import Lane, TopicStream
from streamer.wire.batch import frame_parts

_FIRST: Final = itemgetter(0)
_ENTRY: Final = attrgetter("entry")
_FAILED: Final = -1
"""In place of how many bytes a socket took."""

WRITES_PER_TURN: Final = 128
"""Writes before a flush hands control back: about a millisecond, so that a flush to 10,000
clients does not hold up a ping."""


@attrs.define
class FlushProgress:
    """What a flush has done so far."""

    publications: int = 0
    writes: int = 0
    messages: int = 0
    batches: int = 0
    batched_messages: int = 0

    def count(self, messages: int, writes: int = 1) -> None:
        """So many writes, each to one client and with so many messages."""
        self.writes += writes
        self.messages += writes * messages
        if messages > 1:
            self.batches += writes
            self.batched_messages += writes * messages


class FanOut:
    """Groups and solos of one hub. Only `flush` hands control back, between writes."""

    def __init__(
        self,
        *,
        on_dirty: Callable[[], None],
        clock: Callable[[], float],
        timestamp: Callable[[], str],
        writes_per_turn: int,
    ) -> None:
        """`on_dirty` is called when there is something to flush where there was nothing."""
        self._on_dirty = on_dirty
        self._clock = clock
        self._timestamp = timestamp
        self._writes_per_turn = writes_per_turn
        self._groups: dict[tuple[Lane, ...], Group] = {}
        self._dirty: list[TopicStream] = []
        self._due: dict[Outbox, float] = {}
        """When a client has something whose rate allows it then. No heap: a client that leaves must
        leave this too, and to go through all of them costs less than the flush of one."""
        self._flush_number = 0
        self._entries = itertools.count(1)
        self._last_entry = 0
        """Who entered its group later has all that the flush under way brings."""
        self._lanes: tuple[Lane, ...] = ()
        """What the flush under way brings something of."""
        self._touched: dict[Group, None] = {}
        """The groups that it brings something."""
        self._frames: dict[tuple[Lane, ...], tuple[bytes, int]] = {}

    @property
    def groups(self) -> int:
        """How many different places clients stand together at."""
        return len(self._groups)

    def mark_dirty(self, stream: TopicStream) -> None:
        """A window has begun to fill."""
        self._dirty.append(stream)
        if len(self._dirty) == 1:
            self._on_dirty()

    def forget(self, outbox: Outbox) -> None:
        """A client stands nowhere any more."""
        self.leave(outbox)
        self._due.pop(outbox, None)

    def is_owed(self, outbox: Outbox) -> bool:
        """Whether the flush under way has still to reach the client: its lanes are ahead of it."""
        group = outbox.group
        if group is None or group not in self._touched or outbox.entry > self._last_entry:
            return False
        return group.flush_number != self._flush_number or outbox.entry > group.written

    def join(self, outbox: Outbox) -> None:
        """Into the group of those that stand where this client does, if there is such a place."""
        subscriptions = outbox.subscriptions.values()
        if outbox.group is not None:
            return  # an answer had filled its socket, and no flush has come since
        if not subscriptions or not outbox.may_join or not all(map(_in_step, subscriptions)):
            return
        lanes = tuple(sorted((subscription.lane for subscription in subscriptions), key=id))
        group = self._groups.get(lanes)
        if group is None:
            group = self._groups[lanes] = Group(lanes)
        for subscription in subscriptions:
            del subscription.lane.stream.solos[subscription]
        if group in self._touched:
            self._open(group)
        outbox.enter(group, next(self._entries))

    def leave(self, outbox: Outbox) -> None:
        """Out of its group, with nothing of the flush under way owed to it."""
        group = outbox.group
        if group is None:
            return
        if self.is_owed(outbox):
            outbox.write(*self._open(group))
        self._part(outbox, group)

    def _part(self, outbox: Outbox, group: Group) -> None:
        outbox.leave()
        for subscription in outbox.subscriptions.values():
            subscription.lane.stream.solos[subscription] = None
        if not group.members:
            for lane in group.lanes:
                del lane.groups[group]
            del self._groups[group.lanes]

    def catch_up(self, outbox: Outbox) -> None:
        """Give one client now what the next flush would bring it."""
        self.leave(outbox)
        for subscription in outbox.subscriptions.values():
            outbox.offer(subscription, subscription.lane.stream.window, stretched=False)
        if not outbox.blocked:
            outbox.flush(self._clock(), self._timestamp)

    # Flushing

    @property
    def dirty(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._dirty)

    @property
    def due_seconds(self) -> float | None:
        """When the first message that waits for its rate may go, on the hub's clock."""
        return min(self._due.values(), default=None)

    def flush(self, progress: FlushProgress, *, stretched: bool) -> Iterator[None]:
        """Bring every client all that was published since the last flush.

        With `stretched`, clients in mode latest get only the newest of each kind of a topic.

        Yields after every `writes_per_turn` writes. Meanwhile clients may come, go, subscribe and
        unsubscribe, and publications may arrive: those belong to the next flush, and whoever leaves
        its group is brought to the end of this one first (`leave`).
        """
        self._flush_number += 1
        solos = self._cut(progress, stretched=stretched)
        yield from self._flush_groups(progress)
        for lane in self._lanes:
            lane.clear()
        self._touched.clear()
        self._frames.clear()
        if self._due:
            now = self._clock()
            for outbox in [outbox for outbox, due in self._due.items() if due <= now]:
                del self._due[outbox]
                solos[outbox] = None
        if solos:
            yield from self._flush_solos(solos, progress)

    def _cut(self, progress: FlushProgress, *, stretched: bool) -> dict[Outbox, None]:
        """Close the window: what is published from here on belongs to the next flush.

        One step for all topics, or a flush could bring a client one topic's newest and not
        another's. Groups are only marked here; what is done for each of them is done in turn.
        """
        dirty, self._dirty = self._dirty, []
        self._last_entry = next(self._entries)
        lanes: list[Lane] = []
        solos: dict[Outbox, None] = {}
        for stream in dirty:
            window, stream.window = stream.window, []
            progress.publications += len(window)
            for subscription in stream.solos:
                subscription.outbox.offer(subscription, window, stretched=stretched)
                solos[subscription.outbox] = None
            for lane in stream.lanes.values():
                lane.cut(window, stretched=stretched)
                if lane.parts:
                    lanes.append(lane)
                    self._touched.update(lane.groups)
            stream.flushed_order = stream.order
        self._lanes = tuple(lanes)
        return solos

    def _open(self, group: Group) -> tuple[bytes, int]:
        """What the flush under way brings each member of a group, as one frame and its messages.

        The frame is made once for all groups that share it, and counted once for all members.
        """
        lanes = self._lanes
        if len(lanes) != 1:
            lanes = tuple([lane for lane in group.lanes if lane.parts])
        frame = self._frames.get(lanes)
        if frame is None:
            parts = [part for lane in lanes for part in lane.parts]
            parts.sort(key=_FIRST)
            frame = self._frames[lanes] = frame_parts(parts, self._timestamp), len(parts)
        if group.flush_number != self._flush_number:
            group.flush_number = self._flush_number
            group.written = 0
            offered = sum([lane.offered for lane in lanes])
            group.offered += offered
            group.delivered += frame[1]
            group.conflated += offered - frame[1]
        return frame

    def _flush_groups(self, progress: FlushProgress) -> Iterator[None]:
        turn = self._writes_per_turn
        for group in self._touched:
            frame, messages = self._open(group)
            members, descriptors = self._owed(group)
            start = 0
            while start < len(members):
                stop = min(start + turn, len(members))
                sent = _write_to_all(descriptors[start:stop], frame)
                if sent.count(len(frame)) == len(sent):
                    writes = len(sent)
                else:
                    writes = self._settle(group, members[start:stop], sent, frame, messages)
                progress.count(messages, writes)
                group.written = members[stop - 1].entry
                turn -= stop - start
                start = stop
                if not turn:
                    turn = self._writes_per_turn
                    changes = group.changes
                    yield
                    if group.changes != changes:
                        members, descriptors = self._owed(group)
                        start = 0

    def _owed(self, group: Group) -> tuple[Sequence[Outbox], Sequence[int]]:
        """The members that the flush under way has still to write to, and their descriptors."""
        members = tuple(group.members)
        descriptors = tuple(group.members.values())
        if not members:
            return members, descriptors
        first = bisect_right(members, group.written, key=_ENTRY) if group.written else 0
        if members[-1].entry > self._last_entry:
            last = bisect_right(members, self._last_entry, key=_ENTRY)
        else:
            last = len(members)
        return members[first:last], descriptors[first:last]

    def _settle(
        self,
        group: Group,
        members: Sequence[Outbox],
        sent: Sequence[int],
        frame: bytes,
        messages: int,
    ) -> int:
        """See to those members whose sockets did not take the frame; returns how many did, or will.

        `sent` are the bytes that each took, as `_write_to_all` returns them.
        """
        for outbox, count in zip(members, sent, strict=True):
            if count == len(frame):
                continue
            if count != _FAILED:
                self._part(outbox, group)
                outbox.hold(frame, count, messages)
            elif outbox.blocked:  # by an answer or a heartbeat
                self._part(outbox, group)
                outbox.write(frame, messages)
            else:
                outbox.fail(messages)
        return len(sent) - sent.count(_FAILED)

    def _flush_solos(self, solos: Iterable[Outbox], progress: FlushProgress) -> Iterator[None]:
        for number, outbox in enumerate(solos, 1):
            if not outbox.closed and not outbox.blocked:
                progress.count(self._flush_solo(outbox))
            if not number % self._writes_per_turn:
                yield

    def _flush_solo(self, outbox: Outbox) -> int:
        """Write what waits for one client, which may then stand with others again."""
        messages = outbox.flush(self._clock(), self._timestamp)
        if outbox.pending and not outbox.blocked and (due := outbox.due_seconds) is not None:
            self._due[outbox] = due
            self._on_dirty()  # a writer task may have been here, and the flush loop asleep
        self.join(outbox)
        return messages

    def resume(self, outbox: Outbox) -> None:
        """The socket of a blocked client takes bytes again: write while it does."""
        self._flush_solo(outbox)

    def take(self, outbox: Outbox) -> bytes | memoryview:
        """The next bytes for a client that cannot be written to directly; empty: all is out."""
        data, _ = outbox.take(self._clock(), self._timestamp)
        if not data:
            outbox.unblock()
            self._flush_solo(outbox)
        return data


def _write_to_all(descriptors: Sequence[int], frame: bytes) -> list[int]:
    """Write a frame to each; returns how many bytes each took, `_FAILED` where it is dead.

    All that is done per client, so it is done in C. A loop over the members would cost more, and
    more still to look at each of them where there are thousands, which no cache holds: a tenth of
    the frames/s, together (`python -m bench compare --scenario frames`).
    """
    sent: list[int] = []
    rest = iter(descriptors)
    while len(sent) < len(descriptors):
        try:
            sent.extend(map(os.write, rest, itertools.repeat(frame)))
        except BlockingIOError:
            sent.append(0)
        except OSError:
            sent.append(_FAILED)
    return sent


def _in_step(subscription: Subscription) -> bool:
    """Whether a client has exactly what the groups of its lane have."""
    lane = subscription.lane
    return (
        subscription.seen_order == lane.stream.flushed_order
        and subscription.position == lane.position
        and not subscription.interval_seconds
    )
