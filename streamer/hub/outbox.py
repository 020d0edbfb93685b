"""What one client is still to be sent, and the write that needs no task switch.

Bytes go straight to the socket while it takes them. When it is full, the rest of the write is
held, the client's writer task is started, and what is published meanwhile waits here: the newest of
each kind of a topic in mode latest, everything up to a bound in mode all. Answers and heartbeats
overtake waiting data, but never the inside of a write.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Final, Protocol

import attrs

from streamer.hub.publication import Publication
from streamer.hub.rate_queue import RateQueue
from streamer.hub.replay_queue import ReplayQueue
from streamer.hub.streams import Lane
from streamer.protocol.messages import Mode, Position
from streamer.wire.format import Part, WireFormat

INDIRECT_BUFFER_BYTES: Final = 64 * 1024
"""The most that may wait for the writer task of a TLS connection before the client counts as
behind: as much as a plain socket holds unsent (`edge.acceptor.UNSENT_BYTES`)."""

REPLAY_PORTION_BYTES: Final = 64 * 1024
"""The texts of a replay that are encoded for one write: the socket's buffer takes about as much,
and it bounds what a client that reads slowly makes the server hold in encoded form."""


_ORDER: Final = attrgetter("order")


class OutboxOwner(Protocol):
    """The connection that an outbox belongs to. It is called inside a write and must not wait."""

    def on_blocked(self) -> None:
        """Start the writer task: the socket is full."""

    def on_broken(self) -> None:
        """End the connection: the socket is dead."""

    def on_overflow(self) -> None:
        """Close the connection with 4008: more waits than the settings allow."""


class Membership(Protocol):
    """A group of clients that are sent the same bytes, as its members see it."""

    @property
    def account(self) -> tuple[int, int, int]:
        """Offered, delivered and conflated so far."""

    def put(self, outbox: Outbox, descriptor: int) -> None:
        """Add a member, or change the descriptor to write to."""

    def remove(self, outbox: Outbox) -> None:
        """Remove a member."""


class Subscription:
    """One client's subscription to one topic, and how much of the topic it has been sent."""

    __slots__ = (
        "confirmed",
        "due_seconds",
        "epoch",
        "interval_seconds",
        "lane",
        "outbox",
        "pinged",
        "position",
        "scheduled",
        "seen_order",
        "skip_sequence",
        "waiting",
    )

    def __init__(self, outbox: Outbox, lane: Lane) -> None:
        self.outbox = outbox
        self.lane = lane
        self.interval_seconds = 0.0
        """The least time between two messages of one kind (`max_rate`); 0: no limit."""
        self.due_seconds = 0.0
        """When the next message may be sent, on the hub's clock."""
        self.waiting: dict[object, Publication] | None = None
        self.scheduled = False
        self.position = lane.head
        """The last sequence put on the connection. In a group, the lane's position counts."""
        self.seen_order = lane.stream.order
        """The order of the last publication that was offered, or published before the client
        subscribed."""
        self.skip_sequence = 0
        """Publications of this epoch up to this sequence are not sent: the client had them from
        another server, which was ahead of this one."""
        self.epoch = lane.stream.epoch
        """The epoch of `position`."""
        self.pinged = self.confirmed = lane.stream.position_at(self.epoch, self.position)
        """What the client had been sent at the last ping, and at the last ping that it answered."""

    @property
    def caught_up(self) -> bool:
        """Whether the client has been sent everything that the lane carries."""
        return self.position >= self.lane.head and self.epoch == self.lane.stream.epoch

    def is_ahead(self, publication: Publication) -> bool:
        """Whether a publication of the present epoch comes after what the client has been sent."""
        return self.epoch != self.lane.stream.epoch or publication.sequence > self.position


@attrs.frozen
class OutboxStatistics:
    """A client's account: `offered == delivered + conflated + sum(dropped) + queued`, always."""

    offered: int
    """Publications of its topics, while it was subscribed."""
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
    """The size of waiting messages that may not be merged; bounded by the settings."""
    replay_bytes: int
    """The size of missed messages that are still to be replayed; bounded by the settings."""


class Outbox:
    """The way to one client."""

    __slots__ = (
        "_conflated",
        "_control",
        "_delivered",
        "_group_start",
        "_held",
        "_held_messages",
        "_limited",
        "_max_queued_bytes",
        "_offered",
        "_overflowed",
        "_owner",
        "_queued_bytes",
        "_replayed",
        "_replays",
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
        "wire",
    )

    def __init__(
        self,
        name: str,
        descriptor: int,
        owner: OutboxOwner,
        wire: WireFormat,
        *,
        max_queued_bytes: int,
    ) -> None:
        self.name = name
        """The session id."""
        self.descriptor = descriptor
        """The descriptor of a non-blocking socket; -1 where bytes must pass through TLS: then
        every write waits for the writer task."""
        self._owner = owner
        self.wire = wire
        self._max_queued_bytes = max_queued_bytes
        self.subscriptions: dict[object, Subscription] = {}
        """By topic stream."""
        self.group: Membership | None = None
        self._group_start = (0, 0, 0)
        self.entry = 0
        """Which entry into any group its last one was: entries count up."""
        self.blocked = False
        self.closed = False
        self._held: bytes | memoryview = b""
        """The unsent rest of the write that found the socket full."""
        self._held_messages = 0
        self._control: list[bytes] = []
        self.control_bytes = 0
        self._replays: ReplayQueue[Subscription] | None = None
        """What the client has missed; None unless it came back."""
        self.pending: dict[object, tuple[Subscription, Publication]] = {}
        """What waits of subscriptions without a limited rate."""
        self._limited: RateQueue[Subscription] | None = None
        """What waits of subscriptions with a limited rate; most clients have none."""
        self._queued_bytes = 0
        """The size of what is pending and may not be merged."""
        self._overflowed = False
        self._offered = 0
        self._delivered = 0
        self._conflated = 0
        self._replayed = 0
        self.dropped: Counter[str] = Counter()

    # Membership of a group: the accounts are kept by the group and settled here.

    def enter(self, group: Membership, entry: int) -> None:
        """Join the clients that are at the same position in the same lanes."""
        self.group = group
        self.entry = entry
        self._group_start = group.account
        group.put(self, self.descriptor)

    def leave(self) -> None:
        """Leave the group; its positions become this client's own."""
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
        """Put bytes on the connection, behind what is held; return whether the socket took them.

        Never waits. A dead socket is reported to the owner.
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
        """Hold what the socket did not take after `sent` bytes, and start the writer task."""
        self._held = memoryview(data)[sent:]
        self._held_messages = messages
        if not self.blocked:
            self.blocked = True
            if self.group is not None:
                self.group.put(self, -1)
            self._owner.on_blocked()

    def unblock(self) -> None:
        """Note that the socket has taken everything that was held."""
        self.blocked = False
        if self.group is not None:
            self.group.put(self, self.descriptor)

    def fail(self, messages: int) -> None:
        """Report that the socket died under a write of so many data messages."""
        self._held_messages += messages
        if not self.closed:
            self._owner.on_broken()

    def send_control(self, data: bytes) -> None:
        """Send the bytes of an answer or a heartbeat at once, or before any waiting data."""
        if self.closed or not data:
            return
        if self.blocked:
            self._control.append(data)
            self.control_bytes += len(data)
        else:
            self.write(data)

    # Waiting messages

    def offer(
        self, subscription: Subscription, window: Iterable[Publication], *, stretched: bool
    ) -> None:
        """Let publications of a topic wait for the next `flush`."""
        lane = subscription.lane
        latest = lane.mode is Mode.LATEST
        merging = stretched or subscription.interval_seconds > 0
        for publication in window:
            if publication.order > subscription.seen_order and (
                publication.kind in lane.kinds or publication.kind is None
            ):
                if subscription.skip_sequence and self._skip(subscription, publication):
                    continue
                merge = latest and publication.merges and (merging or self._is_full(publication))
                self._put(subscription, publication, merge=merge)
        subscription.seen_order = lane.stream.order

    @staticmethod
    def _skip(subscription: Subscription, publication: Publication) -> bool:
        """Whether the client had a publication before it came to this server."""
        leads_back = publication.sequence <= subscription.skip_sequence
        if publication.epoch is not None and (
            publication.epoch != subscription.epoch or not leads_back
        ):
            subscription.skip_sequence = 0  # a gap: what follows it is new
        return leads_back and bool(subscription.skip_sequence)

    def _is_full(self, publication: Publication) -> bool:
        """Whether one more fits only in place of another."""
        if self.descriptor >= 0:
            return self.blocked
        # There is no socket buffer of ours to look into, so a little is kept before anything is
        # merged. Half of the room stays free for what may not be merged, or a gap would be one too
        # many.
        limit = min(INDIRECT_BUFFER_BYTES, self._max_queued_bytes // 2)
        return self.blocked and self.queued_bytes + len(publication.text) > limit

    def put(self, subscription: Subscription, publication: Publication) -> None:
        """Let one publication wait that was published before the client asked for its kind."""
        if self._replays is not None and self._replays.insert(subscription, publication):
            return
        merge = subscription.lane.mode is Mode.LATEST and publication.merges
        self._put(subscription, publication, merge=merge)

    def _put(self, subscription: Subscription, publication: Publication, *, merge: bool) -> None:
        """Let one publication wait; with `merge` it replaces an older one of its kind."""
        self._offered += 1
        if self._overflowed:
            self.dropped["overflow"] += 1  # nothing may follow the hole
            return
        size = 0 if merge else len(publication.text)
        if size and self.blocked and self.queued_bytes + size > self._max_queued_bytes:
            self._overflowed = True
            self.dropped["overflow"] += 1
            self._owner.on_overflow()
            return
        # What has no rate of its own (a gap) does not overtake what has.
        if subscription.interval_seconds and (publication.merges or subscription.waiting):
            if self._limited is None:
                self._limited = RateQueue()
            self._conflated += self._limited.put(subscription, publication, merge=merge)
            return
        self._queued_bytes += size
        if merge:
            self._replace(subscription, publication)
        else:
            self.pending[publication] = (subscription, publication)

    def _replace(self, subscription: Subscription, publication: Publication) -> None:
        """Let one publication wait in place of an older one of its kind."""
        key = (subscription, publication.kind)
        if self.pending.pop(key, None) is not None:
            self._conflated += 1
        self.pending[key] = (subscription, publication)

    def release_limited(self, subscription: Subscription) -> None:
        """Let what waits for its rate be sent with the next flush: the rate changes."""
        subscription.due_seconds = 0.0
        if self._limited is None:
            return
        for key, publication in self._limited.take(subscription):
            if key is publication:
                self._queued_bytes += len(publication.text)
                self.pending[key] = (subscription, publication)
            else:
                self._replace(subscription, publication)

    def waiting_gap(self, subscription: Subscription) -> Publication | None:
        """Return the last gap that waits of a subscription."""
        waiting = [p for owner, p in self.pending.values() if owner is subscription]
        waiting += (subscription.waiting or {}).values()
        return max((p for p in waiting if p.epoch is not None), key=_ORDER, default=None)

    def forget(self, subscriptions: AbstractSet[Subscription], reason: str) -> None:
        """Drop everything that waits of these subscriptions."""
        self._drop(subscriptions, lambda subscription, _: subscription in subscriptions, reason)

    def forget_kinds(self, subscription: Subscription, reason: str) -> None:
        """Drop what waits of kinds that a subscription does not ask for any more."""
        kinds = subscription.lane.kinds

        def unwanted(owner: Subscription, publication: Publication) -> bool:
            kind = publication.kind
            return owner is subscription and kind is not None and kind not in kinds

        self._drop((subscription,), unwanted, reason)

    def _drop(
        self, subscriptions: Collection[Subscription], unwanted: _Unwanted, reason: str
    ) -> None:
        """Drop what waits of `subscriptions` and is `unwanted`, in one pass for all of them."""
        count = 0
        for key, entry in tuple(self.pending.items()):
            if unwanted(*entry):
                del self.pending[key]
                count += 1
                if key is entry[1]:
                    self._queued_bytes -= len(entry[1].text)
        if self._limited is not None:
            count += self._limited.discard(subscriptions, unwanted)
        if self._replays is not None:
            self._replays.discard(subscriptions, unwanted)
        if count:
            self.dropped[reason] += count

    # Replays

    def resume(self, subscription: Subscription, position: Position) -> None:
        """Let a new subscription continue from a position other than the end of the stream."""
        subscription.pinged = subscription.confirmed = position
        subscription.position = position.sequence

    def replay(self, subscription: Subscription, missed: Sequence[Publication]) -> None:
        """Send what a new subscription has missed, or a gap, before anything else that waits."""
        if self._replays is None:
            self._replays = ReplayQueue()
        self._replays.add(subscription, missed)

    @property
    def replaying(self) -> bool:
        """Whether there is still something to be replayed."""
        return bool(self._replays)

    @property
    def replay_bytes(self) -> int:
        """The size of what is still to be replayed."""
        return 0 if self._replays is None else self._replays.size_bytes

    def _take_replay(self, replays: ReplayQueue[Subscription]) -> bytes:
        parts: list[Part] = []
        for subscription, missed in replays.take(REPLAY_PORTION_BYTES):
            parts += self.wire.parts(missed, subscription.position)
            subscription.position = missed[-1].sequence
            self._replayed += sum(not publication.notice for publication in missed)
        if not replays:
            self._replays = None
        return self.wire.data(parts)

    # Taking what waits

    def take(self, now_seconds: float) -> tuple[bytes | memoryview, int]:
        """Return the next bytes to write, and how many data messages they finish; empty: none.

        First the rest of a write, then answers and heartbeats, then replays, then data as a batch.
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
        if self._replays:
            return self._take_replay(self._replays), 0
        due_seconds = self.due_seconds
        if not self.pending and (due_seconds is None or due_seconds > now_seconds):
            return b"", 0
        return self._take_pending(now_seconds)

    def _take_pending(self, now_seconds: float) -> tuple[bytes, int]:
        waiting = list(self.pending.values())
        self.pending = {}
        self._queued_bytes = 0
        if self._limited is not None:
            waiting += self._limited.take_due(now_seconds)
        waiting.sort(key=_publication_order)
        parts: list[Part] = []
        encode = self.wire.part
        for subscription, publication in waiting:
            parts.append(encode(publication, subscription.position))
            subscription.position = publication.sequence
            subscription.epoch = publication.epoch or subscription.epoch
        self._delivered += len(parts)
        return self.wire.data(parts), len(parts)

    def flush(self, now_seconds: float) -> int:
        """Write what waits until it is written or the socket is full; return how many messages."""
        total = 0
        while not self.closed:
            data, messages = self.take(now_seconds)
            if not data:
                self.unblock()
                break
            total += messages
            if not self.write(data, messages):
                break
        return total

    @property
    def may_join(self) -> bool:
        """Whether nothing of its own keeps the client from joining a group."""
        return not (
            self.blocked
            or self.closed
            or self.pending
            or self._limited
            or self._replays
            or self.descriptor < 0
        )

    @property
    def due_seconds(self) -> float | None:
        """When the first message that waits for its rate may be sent; None: none waits."""
        return None if self._limited is None else self._limited.due_seconds

    def close(self, reason: str = "disconnected") -> None:
        """Write nothing more, ever: the descriptor may soon be somebody else's socket."""
        if self.closed:
            return
        self.closed = True
        self.descriptor = -1
        self._clear(reason, self._held_messages)
        self._delivered -= self._held_messages
        self._held, self._held_messages = b"", 0
        self._control.clear()
        self.control_bytes = 0

    def clear(self, reason: str) -> None:
        """Drop everything that waits, of all subscriptions at once."""
        self._clear(reason, 0)

    def _clear(self, reason: str, more: int) -> None:
        count = self.queued + more
        if count:
            self.dropped[reason] += count
        self.pending.clear()
        if self._limited is not None:
            self._limited.clear()
        self._replays = None
        self._queued_bytes = 0

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

    @property
    def queued_bytes(self) -> int:
        """The size of what waits and may not be merged."""
        return self._queued_bytes + (self._limited.size_bytes if self._limited else 0)

    @property
    def queued(self) -> int:
        """How many messages wait, replays aside."""
        return len(self.pending) + (len(self._limited) if self._limited else 0)

    def statistics(self) -> OutboxStatistics:
        """The account up to now, and what waits."""
        offered, delivered, conflated = self.account
        return OutboxStatistics(
            offered=offered,
            delivered=delivered,
            replayed=self._replayed,
            conflated=conflated,
            queued=self.queued,
            dropped={reason: count for reason, count in self.dropped.items() if count},
            blocked=self.blocked,
            queued_bytes=self.queued_bytes,
            replay_bytes=self.replay_bytes,
        )


class _Unwanted(Protocol):
    def __call__(self, subscription: Subscription, publication: Publication, /) -> bool: ...


def _publication_order(item: tuple[Subscription, Publication]) -> int:
    return item[1].order
