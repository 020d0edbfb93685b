"""Groups of clients that are sent the same bytes, and the flush that writes to them.

The work per client dominates the cost of a flush, so clients that would be sent the same bytes are
kept together. A *group* is all the clients of one wire format that hold the same lanes and have
been sent the same messages of them: a flush makes one frame for the group and writes it to each
member. Any other client (its socket is full, it has just joined, it has a rate of its own) is a
*solo*: it has a position of its own in every stream, and its unsent messages wait in its outbox.

Messages to one user make no group: a client in a group has the subscription to its own topic as a
solo has, and is sent those messages after the group's frame. Otherwise each user's clients would be
a group of their own, and a price to 10,000 users would be 10,000 frames.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Final, Protocol, cast

import attrs

from streamer.hub.bandwidth import Bandwidth
from streamer.hub.due_clients import DueClients
from streamer.hub.group import Group, GroupKey
from streamer.hub.outbox import RENDERED_BYTES_PER_TURN, Outbox, Write
from streamer.hub.roster import Roster
from streamer.hub.streams import Lane, TopicStream
from streamer.hub.traffic import Traffic
from streamer.wire.format import Part

_FIRST: Final = itemgetter(0)
_ENTRY: Final = attrgetter("entry")
_FAILED: Final = -1
"""In place of the number of bytes that a socket took: the socket is dead."""

WRITES_PER_TURN: Final = 128
"""Writes before a flush hands control back: about a millisecond, so that a flush to 10,000
clients does not hold up a ping."""

MESSAGES_PER_FLUSH: Final = 1000
"""About how many messages a flush offers to solos, and about how many that waited for a rate it
sends: some 10 ms each. The rest is left to the next flush, so that a few hundred clients with
hundreds of topics each do not delay what the others are sent."""

_BYTES_PER_WRITE: Final = 4096
"""A frame for one client counts as another write for each of so many bytes: to make it out of
hundreds of messages takes as long. Events with a place each, after a gap in a hundred topics, take
2 ms for one client, and so a quarter of a second for all of a turn."""

_SMALL_SHARE: Final = 128
"""A topic that takes less than one part in so many of a flush's messages is never left."""


class Signal(Protocol):
    """Wakes the flush loop (`streamer.hub.wakeup.Wakeup`)."""

    def set(self) -> None:
        """Note that there is something to flush, now or when a rate allows it."""


@attrs.define
class FlushProgress:
    """Counts of the work that flushes have done."""

    publications: int = 0
    writes: int = 0
    messages: int = 0
    batches: int = 0
    batched_messages: int = 0

    def count(self, messages: int, writes: int = 1) -> None:
        """Add a number of writes, each to one client and of `messages` messages."""
        self.writes += writes
        self.messages += writes * messages
        if messages > 1:
            self.batches += writes
            self.batched_messages += writes * messages


class FanOut:
    """Groups and solos of one hub. Only `flush` hands control back, between writes."""

    def __init__(
        self,
        wakeup: Signal,
        *,
        clock: Callable[[], float],
        writes_per_turn: int,
        messages_per_flush: int = MESSAGES_PER_FLUSH,
        traffic: Traffic,
        write: Write,
    ) -> None:
        self._wakeup = wakeup
        self._write = write
        self._traffic = traffic
        self._clock = clock
        self._writes_per_turn = writes_per_turn
        self._messages_per_flush = messages_per_flush
        self._groups: dict[GroupKey, Group] = {}
        self._dirty: list[TopicStream] = []
        self._opened_seconds: float | None = None
        """When the first publication of these was published, on the hub's clock."""
        self._left: dict[TopicStream, float] = {}
        """The topics that the last flush has left to the next one, the oldest first, each with when
        its first publication was published."""
        self._due = DueClients()
        self._has_left_due = False
        """Whether the last flush has left messages to the next one whose time had come."""
        self._flush_number = 0
        self._entries = itertools.count(1)
        self._last_entry = 0
        """Clients with a later `entry` have everything that the flush under way writes."""
        self._lanes: tuple[Lane, ...] = ()
        """The lanes that have messages in the flush under way."""
        self._changed: dict[Group, None] = {}
        """The groups whose members have changed since the last flush began."""
        self._frames: dict[GroupKey, tuple[bytes, int]] = {}
        """The frames made for it, by the format and the lanes that they carry."""

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self._groups)

    def mark_dirty(self, stream: TopicStream) -> None:
        """Note the first publication of a topic since the last flush."""
        self._dirty.append(stream)
        if len(self._dirty) == 1:
            self._opened_seconds = self._clock()
            self._wakeup.set()

    def forget(self, outbox: Outbox) -> None:
        """Remove a client from its group and from those that wait for their rate."""
        self.leave(outbox)
        self._due.discard(outbox)

    def is_owed(self, outbox: Outbox) -> bool:
        """Whether the flush under way has still to reach the client: its lanes are ahead of it."""
        group = _group(outbox)
        if not self._lanes or group is None or outbox.entry > self._last_entry:
            return False
        if not any(lane.offered for lane in group.lanes):
            return False
        return group.flush_number != self._flush_number or outbox.entry > group.written

    def join(self, outbox: Outbox) -> None:
        """Add a client to the group of those that have been sent the same, if it may join one."""
        if outbox.group is not None or not outbox.may_join:
            return  # in a group, an answer may have filled its socket, and no flush has run since
        keeps_apart = not outbox.wire.names_positions
        held: list[Lane] = []
        subscriptions = []
        for subscription in outbox.subscriptions.values():
            lane = subscription.lane
            stream = lane.stream
            if keeps_apart and stream.is_personal:
                continue
            if not (
                subscription.seen_order == stream.flushed_order
                and subscription.position == lane.position
                and subscription.epoch == lane.epoch
                and subscription.held == lane.held
                and not subscription.interval_seconds
            ):
                return  # it has not been sent exactly what the groups of the lane have been sent
            held.append(lane)
            subscriptions.append(subscription)
        if not held:
            return
        lanes = tuple(sorted(held, key=id))
        key = (outbox.wire, lanes)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key)
        for subscription in subscriptions:
            del subscription.lane.stream.solos[subscription]
            # It is that far; a gap in a frame of the group would not end it.
            subscription.skip_sequence = 0
        outbox.enter(group, next(self._entries))
        group.has_newcomer = True
        self._changed[group] = None

    def leave(self, outbox: Outbox) -> None:
        """Remove a client from its group, after writing what the flush under way owes it."""
        group = _group(outbox)
        if group is None:
            return
        if self.is_owed(outbox):
            outbox.write(*self._open(group))
        self._part(outbox)

    def _part(self, outbox: Outbox) -> None:
        group = _group(outbox)
        assert group is not None
        outbox.leave()
        for subscription in outbox.subscriptions.values():
            subscription.lane.stream.solos[subscription] = outbox
        if group.members:
            self._changed[group] = None
            return
        for lane in group.lanes:
            del lane.groups[group]
        del self._groups[group.key]
        self._changed.pop(group, None)
        group.adapt_wire()

    def catch_up(self, outbox: Outbox) -> None:
        """Send one client now what the next flush would send it."""
        if not outbox.subscriptions:
            return  # it has just connected
        self.leave(outbox)
        for subscription in outbox.subscriptions.values():
            outbox.offer(subscription, subscription.lane.stream.window, stretched=False)
        if not outbox.blocked:
            outbox.flush(self._clock())

    # Flushing

    @property
    def dirty(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._dirty or self._left)

    @property
    def opened_seconds(self) -> float | None:
        """When the first publication that waits for a flush was published, on the hub's clock."""
        return next(iter(self._left.values())) if self._left else self._opened_seconds

    @property
    def is_behind(self) -> bool:
        """Whether the next flush should begin at once: the last one has left something to it."""
        return bool(self._left) or self._has_left_due

    @property
    def due_seconds(self) -> float | None:
        """When the first message that waits for its rate may be sent, on the hub's clock."""
        return self._due.due_seconds

    def flush(self, progress: FlushProgress, *, stretched: bool) -> Iterator[None]:
        """Send the publications since the last flush to every client.

        With `stretched`, clients in mode latest are sent only the newest of each kind of a topic.

        Yields after every `writes_per_turn` writes. Meanwhile clients may come, go, subscribe and
        unsubscribe, and publications may arrive: those belong to the next flush, and a client that
        leaves its group is first sent the rest of this one (`leave`). What exceeds
        `messages_per_flush` is left to the next flush, too (`is_behind`).
        """
        for group in self._changed:
            group.adapt_wire()
        self._changed.clear()
        self._flush_number += 1
        solos = self._cut(progress, stretched=stretched)
        yield from self._flush_groups(progress)
        for lane in self._lanes:
            lane.clear()
        self._lanes = ()
        self._frames.clear()
        yield from self._flush_solos(solos, progress)
        self._has_left_due = False
        if self._due:
            yield from self._flush_solos(self._take_due(progress), progress)

    def _cut(self, progress: FlushProgress, *, stretched: bool) -> dict[Outbox, None]:
        """Close the window: publications from here on belong to the next flush.

        This is one step for all topics: otherwise a flush could contain newer publications of one
        topic than of another. Only topics that would make it too long are left to the next flush.
        Groups are only marked here; their frames are made in turn.
        """
        dirty, self._dirty = self._dirty, []
        left_before, self._left = self._left, {}
        opened, self._opened_seconds = self._opened_seconds, None
        self._last_entry = next(self._entries)
        lanes: list[Lane] = []
        solos: dict[Outbox, None] = {}
        messages_left = self._messages_per_flush
        small = messages_left // _SMALL_SHARE
        for stream in itertools.chain(left_before, dirty) if left_before else dirty:
            if stream.solos:
                messages = len(stream.solos) * len(stream.window)
                # The first is taken, whatever it costs. Nothing overtakes one that is left except
                # what costs little, so that its turn comes.
                if messages > small and solos and (self._left or messages > messages_left):
                    since = left_before.get(stream, opened)
                    assert since is not None  # it is dirty now, or was left
                    self._left[stream] = since
                    continue
                messages_left -= messages
            window, stream.window = stream.window, []
            progress.publications += len(window)
            for subscription, outbox in stream.solos.items():
                outbox.offer(subscription, window, stretched=stretched)
                solos[outbox] = None
            for lane in stream.lanes.values():
                lane.cut(window, stretched=stretched)
                if lane.offered:
                    lanes.append(lane)
            stream.flushed_order = stream.order
        self._lanes = tuple(lanes)
        return solos

    def _open(self, group: Group) -> tuple[bytes, int]:
        """Return the frame that the flush under way sends to each member, and its message count.

        The frame is made once for all groups that share it.
        """
        lanes = self._lanes
        if len(lanes) != 1:
            lanes = tuple([lane for lane in group.lanes if lane.offered])
        wire = group.wire
        frame = self._frames.get((wire, lanes))
        if frame is None:
            parts: Sequence[Part]
            if len(lanes) == 1:
                parts = lanes[0].parts(wire)
            else:
                parts = sorted([part for lane in lanes for part in lane.parts(wire)], key=_FIRST)
            frame = self._frames[wire, lanes] = (
                wire.data(parts, group.positions),
                len(parts),
            )
        return frame

    def _flush_groups(self, progress: FlushProgress) -> Iterator[None]:
        lanes = self._lanes
        if len(lanes) == 1 and lanes[0].renderer is None:
            lane = lanes[0]
            if len(lane.groups) <= self._writes_per_turn:
                yield from self._flush_lane(lane, progress)
            else:
                yield from self._write_to_groups(tuple(lane.groups), progress)
            return
        groups: dict[Group, None] = {}
        rendering: dict[Group, None] = {}
        for lane in lanes:
            groups.update(lane.groups)
            if lane.renderer is not None:
                rendering.update(lane.groups)
        for group in rendering:  # last
            groups[group] = groups.pop(group)
        yield from self._write_to_groups(groups, progress, rendering)

    def _flush_lane(self, lane: Lane, progress: FlushProgress) -> Iterator[None]:
        """Write to the groups of the only lane that has messages."""
        if lane.roster is None:
            lane.roster = Roster(lane.groups, self._writes_per_turn)
        roster: Roster = lane.roster
        if not roster.groups:
            yield from self._write_to_groups(roster.others, progress)
            return
        if roster.others:
            yield from self._write_to_groups(roster.others, progress)
            if roster.members > self._writes_per_turn:
                yield
            if lane.roster is not roster:  # members have come or gone meanwhile
                number = self._flush_number
                left = [group for group in lane.groups if group.flush_number != number]
                yield from self._write_to_groups(left, progress)
                return
        # Nothing is noted in the groups: no other task runs until the lane is cleared.
        frame, messages = self._open(roster.groups[0])
        self._write_frame(roster, roster.descriptors, frame, messages, progress)

    def _write_to_groups(
        self,
        groups: Iterable[Group],
        progress: FlushProgress,
        rendering: Container[Group] = (),
    ) -> Iterator[None]:
        turn = self._writes_per_turn
        for group in groups:
            if group in rendering:
                yield from _render(group)
            if group.flush_number != self._flush_number:
                group.flush_number = self._flush_number
                group.written = 0
            frame, messages = self._open(group)
            if len(group.members) == 1:  # as with lists that each client chooses for itself
                progress.count(messages, self._write_to_only_member(group, frame, messages))
                turn -= 1 + len(frame) // _BYTES_PER_WRITE
                if turn <= 0:
                    turn = self._writes_per_turn
                    yield
                continue
            members, descriptors = self._owed(group)
            start = 0
            while start < len(members):
                stop = min(start + turn, len(members))
                some = itertools.islice(members, start, stop)
                self._write_frame(some, descriptors[start:stop], frame, messages, progress)
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

    def _write_frame(
        self,
        members: Iterable[Outbox],
        descriptors: Sequence[int],
        frame: bytes,
        messages: int,
        progress: FlushProgress,
    ) -> None:
        """Write a frame to members of groups, and count it.

        `members` are those of the descriptors, and looked at only if not all sockets take it.
        """
        sent = _write_to_all(self._write, descriptors, frame)
        writes = len(sent)
        if sent.count(len(frame)) == writes:
            self._traffic.sent_bytes += writes * len(frame)
        else:
            writes = self._settle(tuple(members), sent, frame, messages)
        progress.count(messages, writes)

    def _write_to_only_member(self, group: Group, frame: bytes, messages: int) -> int:
        """Write to the only member, if the flush owes it the frame.

        Returns the number of members (0 or 1) that have taken the frame or hold it.
        """
        ((outbox, descriptor),) = group.members.items()
        if outbox.entry > self._last_entry:
            return 0
        group.written = outbox.entry
        try:
            sent = self._write(descriptor, frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = _FAILED
        if sent == len(frame):
            self._traffic.sent_bytes += sent
            return 1
        return self._settle((outbox,), (sent,), frame, messages)

    def _owed(self, group: Group) -> tuple[Sequence[Outbox], Sequence[int]]:
        """Return the members that the flush has still to write to, and their descriptors."""
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
        members: Sequence[Outbox],
        sent: Sequence[int],
        frame: bytes,
        messages: int,
    ) -> int:
        """Make solos of the members whose sockets did not take the frame.

        `sent` are the bytes that each took, as `_write_to_all` returns them. Returns how many
        members have taken the frame or hold it.
        """
        self._traffic.sent_bytes += sum(count for count in sent if count != _FAILED)
        for outbox, count in zip(members, sent, strict=True):
            if count == len(frame):
                continue
            if count != _FAILED:
                self._part(outbox)
                outbox.hold(frame, count, messages)
            elif outbox.blocked:  # by an answer or a heartbeat
                self._part(outbox)
                outbox.write(frame, messages)
            else:
                outbox.fail(messages)
        return len(sent) - sent.count(_FAILED)

    def _flush_solos(self, solos: Iterable[Outbox], progress: FlushProgress) -> Iterator[None]:
        turn = self._writes_per_turn
        for outbox in solos:
            turn -= 1
            if not outbox.closed and not outbox.blocked:
                messages = self._flush_solo(outbox)
                progress.count(messages)
                turn -= messages  # to encode one takes about as long as a write
            if turn <= 0:
                turn = self._writes_per_turn
                yield

    def _take_due(self, progress: FlushProgress) -> Iterator[Outbox]:
        """Yield the clients for whose messages it is time now, those that waited longest first.

        Each has to be flushed before the next: those that exceed the limit are left.
        """
        now = self._clock()
        limit = progress.messages + self._messages_per_flush
        while (due := self._due.due_seconds) is not None and due <= now:
            if progress.messages >= limit:
                self._has_left_due = True
                return
            yield self._due.pop()

    def _flush_solo(self, outbox: Outbox) -> int:
        """Write one client's waiting messages, and let it join a group if none is left."""
        messages = outbox.flush(self._clock())
        due = None if outbox.blocked or outbox.corked else outbox.due_seconds
        if due is not None and self._due.put(outbox, due):
            self._wakeup.set()  # called by a writer task, perhaps, while the flush loop sleeps
        self.join(outbox)
        return messages

    def limit_bandwidth(self, outbox: Outbox, bytes_per_second: float) -> None:
        """Send a client at most so many bytes a second; 0: as much as its socket takes.

        It is in no group then: each write depends on the bytes that it alone has been sent.
        """
        self.leave(outbox)
        outbox.bandwidth = Bandwidth(bytes_per_second) if bytes_per_second else None
        if not outbox.blocked and not outbox.closed:
            self._flush_solo(outbox)

    def cork(self, outbox: Outbox) -> None:
        """Write nothing but answers and heartbeats to a client, until `uncork`.

        What is sent before the live flow is being made, in more than one turn of the loop.
        """
        self.leave(outbox)
        outbox.corked = True

    def uncork(self, outbox: Outbox) -> None:
        """Write to a client again, first what has come meanwhile."""
        outbox.corked = False
        if not outbox.blocked:
            self._flush_solo(outbox)

    def start_replays(self, outbox: Outbox) -> None:
        """Begin to send a client its missed messages; its writer task does the rest."""
        if outbox.backlog.replaying and not outbox.blocked:
            self._flush_solo(outbox)

    def resume(self, outbox: Outbox) -> None:
        """Write to a blocked client whose socket takes bytes again."""
        self._flush_solo(outbox)


def _write_to_all(write: Write, descriptors: Sequence[int], frame: bytes) -> list[int]:
    """Write a frame to each; return how many bytes each took, `_FAILED` where it is dead.

    This is all the work per client, so `map` does it in C. A Python loop over the members, and the
    look at each of thousands of objects that no cache holds, would together cost a tenth of the
    frames/s (`python -m bench compare --scenario frames`).
    """
    sent: list[int] = []
    rest = iter(descriptors)
    while len(sent) < len(descriptors):
        try:
            sent.extend(map(write, rest, itertools.repeat(frame)))
        except BlockingIOError:
            sent.append(0)
        except OSError:
            sent.append(_FAILED)
    return sent


def _render(group: Group) -> Iterator[None]:
    """Render what the flush under way sends to a group; yields after each portion.

    A client that leaves the group meanwhile has the rest rendered at once.
    """
    left_bytes = RENDERED_BYTES_PER_TURN
    for lane in group.lanes:
        while lane.offered and (done_bytes := lane.render(left_bytes)):
            left_bytes -= done_bytes
            if left_bytes <= 0:
                left_bytes = RENDERED_BYTES_PER_TURN
                yield


def _group(outbox: Outbox) -> Group | None:
    # An outbox knows its group by a protocol only, or the two modules would import each other.
    return cast("Group | None", outbox.group)
