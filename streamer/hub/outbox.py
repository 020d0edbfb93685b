"""What one client has still to get, and the write that needs no task switch.

Bytes go straight to the socket while it takes them. When it is full, the rest of the frame is
held, the client's writer task is started, and what is published meanwhile waits here: the newest of
each kind of a topic in mode latest, everything up to a bound in mode all. Answers and heartbeats
overtake waiting data, but never the inside of a frame.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import attrs

from streamer.hub.publication import Publication
from streamer.hub.streams import Lane
from streamer.protocol.messages import Mode
from streamer.wire.batch import Part, frame_parts

INDIRECT_BUFFER_BYTES: Final = 64 * 1024
"""What may wait for the writer task of a TLS connection before the client counts as behind: as much
as a plain socket holds unsent (see `edge.session`)."""


class OutboxOwner(Protocol):
    """The connection whose outbox it is. Both are called from inside a write: neither may wait."""

    def on_blocked(self) -> None:
        """The socket is full: start the writer task."""

    def on_broken(self) -> None:
        """The socket is dead: end the connection."""

    def on_overflow(self) -> None:
        """More is waiting than the client may leave waiting: close with 4008."""


class Subscription:
    """What one client asked for of one topic, and how much of it has been put on its connection."""

    __slots__ = (
        "confirmed",
        "due_seconds",
        "epoch",
        "interval_seconds",
        "lane",
        "outbox",
        "pinged",
        "position",
        "seen_order",
    )

    def __init__(self, outbox: Outbox, lane: Lane) -> None:
        self.outbox = outbox
        self.lane = lane
        self.interval_seconds = 0.0
        """Between two messages of one kind; 0: no limit (`max_rate` of the contract)."""
        self.due_seconds = 0.0
        """When the next message may go, on the clock of the flush loop."""
        self.position = lane.head
        """The last sequence put on the connection. In a group the lane's position is the truth."""
        self.seen_order = lane.stream.order
        """The last publication that was offered, or that came before the client did."""
        self.epoch = lane.stream.epoch
        """The epoch of that."""
        self.pinged = self.confirmed = lane.stream.place(self.epoch, self.position)
        """What the client had been sent at the last ping, and at the last one that it answered."""

    @property
    def caught_up(self) -> bool:
        """Whether the client has been sent all there is: an old epoch may have had that number."""
        return self.position == self.lane.head and self.epoch == self.lane.stream.epoch

    def is_ahead(self, publication: Publication) -> bool:
        """Whether a publication of the present epoch comes after what the client has been sent."""
        return self.epoch != self.lane.stream.epoch or publication.sequence > self.position


@attrs.frozen
class OutboxStatistics:
    """A client's account: `offered == delivered + conflated + sum(dropped) + queued`, always."""

    offered: int
    """Publications of what it subscribed to, while it did."""
    delivered: int
    """Messages put on the connection."""
    replayed: int
    """Messages put on it again, or late, because the client asked for what it had missed."""
    conflated: int
    """Publications that a newer one replaced."""
    queued: int
    """Messages waiting."""
    dropped: dict[str, int]
    """Messages that will never be sent, by reason."""
    blocked: bool
    queued_bytes: int
    """Of messages that may not be merged; bounded by the settings."""


class Group:
    """The clients that hold the same lanes and stand at the same place in them."""

    __slots__ = (
        "changes",
        "conflated",
        "delivered",
        "flush_number",
        "lanes",
        "members",
        "offered",
        "written",
    )

    def __init__(self, lanes: tuple[Lane, ...]) -> None:
        self.lanes = lanes
        self.members: dict[Outbox, int] = {}
        """In the order of their `entry`, with the descriptor to write to; -1 for one whose socket
        an answer or a heartbeat has filled."""
        self.changes = 0
        """Of the members: what was made from them before is out of date."""
        self.flush_number = 0
        """Of the last flush that is in its account."""
        self.written = 0
        """The `entry` of the last member that this flush has written to."""
        self.offered = 0
        self.delivered = 0
        self.conflated = 0
        """The account of a member since the beginning: members keep the difference, so that a
        flush counts once and not for each of them."""
        for lane in lanes:
            lane.groups[self] = None

    def put(self, outbox: Outbox, descriptor: int) -> None:
        """Take in a member, or change what is written to."""
        self.members[outbox] = descriptor
        self.changes += 1

    def remove(self, outbox: Outbox) -> None:
        """Let a member go."""
        del self.members[outbox]
        self.changes += 1

    @property
    def account(self) -> tuple[int, int, int]:
        """Offered, delivered and conflated so far."""
        return self.offered, self.delivered, self.conflated


class Outbox:
    """The way to one client."""

    __slots__ = (
        "_conflated",
        "_control",
        "_delivered",
        "_group_start",
        "_held",
        "_held_messages",
        "_max_queued_bytes",
        "_offered",
        "_overflowed",
        "_owner",
        "_queued_bytes",
        "_replayed",
        "blocked",
        "closed",
        "control_bytes",
        "descriptor",
        "dropped",
        "entry",
        "group",
        "name",
        "pending",
        "subscriptions",
    )

    def __init__(
        self, name: str, descriptor: int, owner: OutboxOwner, *, max_queued_bytes: int
    ) -> None:
        self.name = name
        """The session_id, for whoever asks who is there."""
        self.descriptor = descriptor
        """Of a non-blocking socket; -1 where bytes must pass through TLS: then every write waits
        for the writer task."""
        self._owner = owner
        self._max_queued_bytes = max_queued_bytes
        self.subscriptions: dict[object, Subscription] = {}
        """By topic stream."""
        self.group: Group | None = None
        self._group_start = (0, 0, 0)
        self.entry = 0
        """When it entered its group: entries into any group count up."""
        self.blocked = False
        self.closed = False
        self._held: bytes | memoryview = b""
        """The unsent rest of the write that found the socket full."""
        self._held_messages = 0
        self._control: list[bytes] = []
        self.control_bytes = 0
        self.pending: dict[object, tuple[Subscription, Publication]] = {}
        self._queued_bytes = 0
        self._overflowed = False
        self._offered = 0
        self._delivered = 0
        self._conflated = 0
        self._replayed = 0
        self.dropped: Counter[str] = Counter()

    # Membership of a group: the accounts are kept by the group and settled here.

    def enter(self, group: Group, entry: int) -> None:
        """Join the clients that stand where this one does."""
        self.group = group
        self.entry = entry
        self._group_start = group.account
        group.put(self, self.descriptor)

    def leave(self) -> None:
        """Stand alone; the positions become this client's own."""
        group = self.group
        if group is None:
            return
        self._offered, self._delivered, self._conflated = self.account
        self.group = None
        group.remove(self)
        for subscription in self.subscriptions.values():
            subscription.position = subscription.lane.position
            subscription.epoch = subscription.lane.epoch
            subscription.seen_order = subscription.lane.stream.flushed_order

    # Writing

    def write(self, data: bytes | memoryview, messages: int = 0) -> bool:
        """Put bytes on the connection; True: the socket took them all.

        Behind the rest of what is held, if there is any. Never waits. A dead socket is reported to
        the owner.
        """
        if self._held:  # by an answer or a heartbeat, while a flush owes a group's frame
            self._held = b"".join((self._held, data))
            self._held_messages += messages
            return False
        descriptor = self.descriptor
        sent = 0
        if descriptor >= 0:
            try:
                sent = os.write(descriptor, data)
            except BlockingIOError:
                pass
            except OSError:
                self.fail(messages)
                return False
            if sent == len(data):
                return True
        self.hold(data, sent, messages)
        return False

    def hold(self, data: bytes | memoryview, sent: int, messages: int) -> None:
        """The socket took only `sent` bytes: keep the rest, and have the writer task started."""
        self._held = memoryview(data)[sent:]
        self._held_messages = messages
        if not self.blocked:
            self.blocked = True
            if self.group is not None:
                self.group.put(self, -1)
            self._owner.on_blocked()

    def unblock(self) -> None:
        """The socket has taken all that was held."""
        self.blocked = False
        if self.group is not None:
            self.group.put(self, self.descriptor)

    def fail(self, messages: int) -> None:
        """The socket died under a frame with so many messages."""
        self._held_messages += messages
        if not self.closed:
            self._owner.on_broken()

    def send_control(self, frame: bytes) -> None:
        """Send an answer or a heartbeat: at once, or before any waiting data."""
        if self.closed or not frame:
            return
        if self.blocked:
            self._control.append(frame)
            self.control_bytes += len(frame)
        else:
            self.write(frame)

    def count_replayed(self, messages: int) -> None:
        """Account for messages that the client gets among its answers."""
        self._replayed += messages

    # What waits

    def offer(
        self, subscription: Subscription, window: Iterable[Publication], *, stretched: bool
    ) -> None:
        """Take what was published of a topic: the client gets it with the next `flush`."""
        lane = subscription.lane
        latest = lane.mode is Mode.LATEST
        merging = stretched or subscription.interval_seconds > 0
        for publication in window:
            if publication.order > subscription.seen_order and (
                publication.kind in lane.kinds or publication.kind is None
            ):
                merge = latest and publication.merges and (merging or self._is_full(publication))
                self._put(subscription, publication, merge=merge)
        subscription.seen_order = lane.stream.order

    def _is_full(self, publication: Publication) -> bool:
        """Whether one more does not fit without taking the place of another."""
        if self.descriptor >= 0:
            return self.blocked
        # Without a socket buffer of ours to look into, a little is kept before any is merged. Half
        # of the room stays free for what may not be, or a gap would be one too many.
        limit = min(INDIRECT_BUFFER_BYTES, self._max_queued_bytes // 2)
        return self.blocked and self._queued_bytes + len(publication.text) > limit

    def put(self, subscription: Subscription, publication: Publication) -> None:
        """Let one publication wait for a client that is behind, unless it does already."""
        waits = (publication, (subscription, publication.kind))
        if not any(key in self.pending and self.pending[key][1] is publication for key in waits):
            merge = subscription.lane.mode is Mode.LATEST and publication.merges
            self._put(subscription, publication, merge=merge)

    def _put(self, subscription: Subscription, publication: Publication, *, merge: bool) -> None:
        """Let one publication wait; with `merge` it takes the place of an older one of its kind."""
        self._offered += 1
        key: object = publication
        if self._overflowed:
            self.dropped["overflow"] += 1  # nothing may follow the hole
            return
        if merge:
            key = (subscription, publication.kind)
            if self.pending.pop(key, None) is not None:
                self._conflated += 1
        else:
            self._queued_bytes += len(publication.text)
            if self.blocked and self._queued_bytes > self._max_queued_bytes:
                self._overflowed = True
                self.dropped["overflow"] += 1
                self._owner.on_overflow()
                return
        self.pending[key] = (subscription, publication)

    def forget(self, subscription: Subscription, reason: str) -> None:
        """Drop what waits of one subscription."""
        gone = [key for key, (owner, _) in self.pending.items() if owner is subscription]
        for key in gone:
            _, publication = self.pending.pop(key)
            if key is publication:
                self._queued_bytes -= len(publication.text)
            self.dropped[reason] += 1

    def take(
        self, now_seconds: float, timestamp: Callable[[], str]
    ) -> tuple[bytes | memoryview, int]:
        """The next bytes to write, and how many data messages they finish; empty: nothing waits.

        First the rest of a frame, then answers and heartbeats, then data, as one batch.
        """
        if self._held:
            held, messages = self._held, self._held_messages
            self._held, self._held_messages = b"", 0
            return held, messages
        if self._control:
            control = b"".join(self._control)
            self._control.clear()
            self.control_bytes = 0
            return control, 0
        return self._take_pending(now_seconds, timestamp)

    def _take_pending(self, now_seconds: float, timestamp: Callable[[], str]) -> tuple[bytes, int]:
        if not self.pending:
            return b"", 0
        waiting = sorted(self.pending.items(), key=_publication_order)
        self.pending = {}
        self._queued_bytes = 0
        parts: list[Part] = []
        limited: list[Subscription] = []
        kept: set[Subscription] = set()
        for key, entry in waiting:
            subscription, publication = entry
            # What has no rate of its own (a gap) does not overtake what has.
            if subscription.interval_seconds and (publication.merges or subscription in kept):
                if subscription.due_seconds > now_seconds:
                    kept.add(subscription)
                    self.pending[key] = entry
                    if key is publication:
                        self._queued_bytes += len(publication.text)
                    continue
                limited.append(subscription)
            text = publication.text_following(subscription.position)
            subscription.position = publication.sequence
            parts.append((publication.order, text, publication.epoch is not None))
            subscription.epoch = publication.epoch or subscription.epoch
        for subscription in limited:
            subscription.due_seconds = now_seconds + subscription.interval_seconds
        self._delivered += len(parts)
        return frame_parts(parts, timestamp), len(parts)

    def flush(self, now_seconds: float, timestamp: Callable[[], str]) -> int:
        """Write what waits, until it is written or the socket is full; how many messages."""
        total = 0
        while not self.closed:
            data, messages = self.take(now_seconds, timestamp)
            if not data:
                self.unblock()
                break
            total += messages
            if not self.write(data, messages):
                break
        return total

    @property
    def may_join(self) -> bool:
        """Whether nothing of its own keeps the client from standing with others."""
        return not (self.blocked or self.closed or self.pending or self.descriptor < 0)

    @property
    def due_seconds(self) -> float | None:
        """When the first message that waits for its rate may go; None: none does."""
        return min(
            (
                subscription.due_seconds
                for subscription, publication in self.pending.values()
                if subscription.interval_seconds and publication.merges
            ),
            default=None,
        )

    def close(self, reason: str = "disconnected") -> None:
        """Write nothing more, ever: the descriptor may soon be somebody else's socket."""
        if self.closed:
            return
        self.closed = True
        self.descriptor = -1
        self.dropped[reason] += len(self.pending) + self._held_messages
        self._delivered -= self._held_messages
        self._held, self._held_messages = b"", 0
        self.pending.clear()
        self._control.clear()
        self.control_bytes = self._queued_bytes = 0

    @property
    def account(self) -> tuple[int, int, int]:
        """Offered, delivered and conflated up to now."""
        if self.group is None:
            return self._offered, self._delivered, self._conflated
        offered, delivered, conflated = self.group.account
        start = self._group_start
        return (
            self._offered + offered - start[0],
            self._delivered + delivered - start[1],
            self._conflated + conflated - start[2],
        )

    def statistics(self) -> OutboxStatistics:
        """The account up to now, and what waits."""
        offered, delivered, conflated = self.account
        return OutboxStatistics(
            offered=offered,
            delivered=delivered,
            replayed=self._replayed,
            conflated=conflated,
            queued=len(self.pending),
            dropped={reason: count for reason, count in self.dropped.items() if count},
            blocked=self.blocked,
            queued_bytes=self._queued_bytes,
        )


def _publication_order(item: tuple[object, tuple[Subscription, Publication]]) -> int:
    return item[1][1].order
