"""The outbox of one client: its unsent messages, and a write that needs no task switch.

Bytes go straight to the socket while it takes them. When it is full, the rest of the write is
held, the client's writer task is started, and new publications wait here: the newest of each kind
of a topic in mode latest, everything up to a bound in mode all. Answers and heartbeats overtake
waiting data, but never interrupt a write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

import attrs

from streamer.hub.backlog import Backlog, Pending
from streamer.hub.bandwidth import Bandwidth
from streamer.hub.publication import Publication
from streamer.hub.subscription import Subscription
from streamer.hub.traffic import Traffic
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind
from streamer.wire.format import Part, Placed, WireFormat

MAX_REPLAY_BYTES: Final = 32 * 1024 * 1024
"""The most that is held of replays, where no setting says otherwise."""

REPLAY_PORTION_BYTES: Final = 64 * 1024
"""Bytes of replayed texts that are encoded for one write: about as much as a socket's buffer takes.
It bounds the memory for encoded messages of a client that reads slowly."""

REPLAYED_PER_TURN: Final = 1000
"""Messages replayed to one client before the loop serves others: a millisecond or two. A socket
whose client reads takes megabytes without ever being full."""

RENDERED_BYTES_PER_TURN: Final = 64 * 1024
"""Bytes of messages that are rendered for one client before the loop serves others: of books of
hundreds of levels that takes some 10 ms, as each is compared with the one that the client has."""

_LEAST_PER_PORTION: Final = 64
"""A portion of a replay counts as so many messages at least: to copy its bytes takes as long."""


Write = Callable[[int, bytes | memoryview], int]
"""Writes bytes to a descriptor without waiting, as os.write: returns how many were taken, or raises
BlockingIOError, or another OSError if the socket is dead. What a full socket did not take comes
first in the next write to it."""


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

    def positions(self) -> list[Placed]:
        """Return where the members are after the last flush, or the one under way."""

    def put(self, outbox: Outbox, descriptor: int) -> None:
        """Add a member, or change the descriptor to write to."""

    def remove(self, outbox: Outbox) -> None:
        """Remove a member."""


class _NoOwner:
    """The owner of an outbox that is closed, or that nothing is written to."""

    def on_blocked(self) -> None:
        """Do nothing."""

    on_broken = on_overflow = on_blocked


NO_OWNER: Final = _NoOwner()


@attrs.frozen
class OutboxStatistics:
    """A client's account: `offered == delivered + conflated + sum(dropped) + queued`, always."""

    offered: int
    """Publications of its topics, while it was subscribed."""
    delivered: int
    """Messages put on the connection."""
    replayed: int
    """Messages put on it again, or late, because the client asked for its missed messages."""
    conflated: int
    """Publications that a newer one replaced."""
    queued: int
    """Messages waiting."""
    dropped: dict[str, int]
    """Messages that will never be sent, by reason."""
    blocked: bool
    queued_bytes: int
    """The size of waiting messages that have to be sent; bounded by the settings."""
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
        "_max_queued_bytes",
        "_max_replay_bytes",
        "_offered",
        "_overflowed",
        "_owner",
        "_replayed",
        "_work_now",
        "_write",
        "backlog",
        "bandwidth",
        "blocked",
        "closed",
        "control_bytes",
        "corked",
        "descriptor",
        "dropped",
        "entry",
        "group",
        "name",
        "pings",
        "renders",
        "subscriptions",
        "traffic",
        "user_id",
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
        max_replay_bytes: int = MAX_REPLAY_BYTES,
        traffic: Traffic | None = None,
        write: Write = os.write,
    ) -> None:
        """`traffic` counts the bytes of this client together with those of others.

        `write` writes to `descriptor`.
        """
        self._write = write
        self.name = name
        """The session id."""
        self.descriptor = descriptor
        """The descriptor of a non-blocking socket; -1 if there is none, as for a read over HTTP:
        then the caller uses `take`."""
        self._owner = owner
        self.wire = wire
        self.user_id: str | None = None
        """The user to whom the session belongs; None for an anonymous client."""
        self.traffic = Traffic() if traffic is None else traffic
        self._max_queued_bytes = max_queued_bytes
        self._max_replay_bytes = max_replay_bytes
        self.subscriptions: dict[object, Subscription] = {}
        """By topic stream."""
        self.renders = False
        """Whether one of them has had deltas or a depth."""
        self.group: Membership | None = None
        self._group_start = (0, 0, 0)
        self.entry = 0
        """The number of its last entry into a group; entries into all groups count up."""
        self.blocked = False
        self.closed = False
        self.corked = False
        """Whether only answers and heartbeats are written (`FanOut.cork`)."""
        self.bandwidth: Bandwidth | None = None
        """None: the client is sent what its socket takes."""
        self.pings = 0
        """How many pings the client has been sent."""
        self._held: bytes | memoryview = b""
        """The unsent rest of the write that filled the socket."""
        self._held_messages = 0
        self._control: list[bytes] = []
        self.control_bytes = 0
        self.backlog: Backlog[Subscription] = Backlog()
        """Waiting messages; answers and the rest of the last write are not among them."""
        self._overflowed = False
        self._offered = 0
        self._delivered = 0
        self._conflated = 0
        self._replayed = 0
        self._work_now = 0
        """Messages of replays that the present `flush` has taken, rendered ones for more."""
        self.dropped: dict[str, int] = {}
        """Messages that will never be sent, by reason."""

    # Membership of a group: the accounts are kept by its lanes and settled here.

    def enter(self, group: Membership, entry: int) -> None:
        """Join a group: the clients that are at the same position in the same lanes."""
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
            lane = subscription.lane
            if subscription in lane.stream.solos:
                continue
            subscription.position = lane.position
            subscription.epoch = lane.epoch
            subscription.seen_order = lane.stream.flushed_order
            if lane.held is not None:
                subscription.held = dict(lane.held)

    # Writing

    def write(self, data: bytes | memoryview, messages: int = 0) -> bool:
        """Write bytes after those that are held; return whether the socket took all of them.

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
                sent = self._write(descriptor, data)
            except BlockingIOError:
                pass
            except OSError:
                self.fail(messages)
                return False
            self.traffic.sent_bytes += sent
            if sent == len(data):
                return True
        self.hold(data, sent, messages)
        return False

    def hold(self, data: bytes | memoryview, sent: int, messages: int) -> None:
        """Hold the bytes after the first `sent`, which the socket took; start the writer task."""
        self._held = memoryview(data)[sent:]
        self._held_messages = messages
        self._block()

    def _block(self) -> None:
        """Write nothing more but by the writer task, which is started."""
        if not self.blocked:
            self.blocked = True
            if self.group is not None:
                self.group.put(self, -1)
            self._owner.on_blocked()

    def unblock(self) -> None:
        """Note that the socket has taken all held bytes."""
        self.blocked = False
        if self.group is not None:
            self.group.put(self, self.descriptor)

    def fail(self, messages: int) -> None:
        """Report that the socket died during a write of `messages` data messages."""
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
            if self.bandwidth is not None:
                self.bandwidth.spend(len(data))
            self.write(data)

    # Waiting messages

    def offer(
        self, subscription: Subscription, window: Iterable[Publication], *, stretched: bool
    ) -> None:
        """Queue publications of a topic for the next `flush`."""
        lane = subscription.lane
        latest = lane.mode is Mode.LATEST
        merging = stretched or subscription.interval_seconds > 0
        for publication in window:
            if publication.order > subscription.seen_order and (
                publication.kind in lane.kinds or publication.kind is None
            ):
                if subscription.skip_sequence and self._skip(subscription, publication):
                    continue
                merge = latest and publication.merges and (merging or self._is_full)
                self._put(subscription, publication, merge=merge)
        subscription.seen_order = lane.stream.order

    @staticmethod
    def _skip(subscription: Subscription, publication: Publication) -> bool:
        """Whether the client had a publication before it came to this server."""
        leads_back = publication.sequence <= subscription.skip_sequence
        if publication.epoch is not None and (
            publication.epoch != subscription.epoch or not leads_back
        ):
            subscription.skip_sequence = 0  # a gap: all publications after it are new
        return leads_back and bool(subscription.skip_sequence)

    @property
    def _is_full(self) -> bool:
        """Whether there is room for a publication only in place of another."""
        return self.blocked or self.corked or self._waits_for_bandwidth

    @property
    def _waits_for_bandwidth(self) -> bool:
        return self.bandwidth is not None and self.bandwidth.is_short

    @property
    def due_seconds(self) -> float | None:
        """When messages that wait for a rate or for bandwidth may be sent; None: none waits."""
        bandwidth = self.bandwidth
        if bandwidth is None:
            return self.backlog.due_seconds
        due_seconds = self.backlog.next_seconds
        return None if due_seconds is None else max(due_seconds, bandwidth.due_seconds)

    def put(
        self, subscription: Subscription, publication: Publication, *, gap: Publication | None
    ) -> None:
        """Queue one publication that was published before the client asked for its kind.

        `gap` is the gap that it follows, if one waits: missed messages are from before that.
        """
        if gap is None and self.backlog.insert_missed(subscription, publication):
            return
        if self.backlog.insert_live(subscription, publication):
            self._offered += 1
            return
        merge = subscription.lane.mode is Mode.LATEST and publication.merges
        self._put(subscription, publication, merge=merge)

    def _put(self, subscription: Subscription, publication: Publication, *, merge: bool) -> None:
        """Queue one publication; with `merge` it replaces an older one of its kind."""
        self._offered += 1
        if self._overflowed:
            self._count_dropped(1, "overflow")  # nothing may follow the hole
            return
        if subscription.lane.mode is Mode.ALL and self.backlog.append_to_replay(
            subscription, publication
        ):
            if self.backlog.replay_bytes > self._max_replay_bytes:
                self._overflow()
            return
        # Newer states replace older ones, so those of a client that is behind have a bound.
        is_state = publication.merges or publication.is_last_value
        counts = not is_state or subscription.lane.mode is Mode.ALL
        if counts and self._is_full:
            size = self.backlog.queued_bytes + len(publication.text)
            if size > self._max_queued_bytes:
                self._count_dropped(1, "overflow")
                self._overflow()
                return
        self._conflated += self.backlog.put(subscription, publication, merge=merge, counts=counts)

    def _overflow(self) -> None:
        self._overflowed = True
        self._owner.on_overflow()

    def release_limited(self, subscription: Subscription) -> None:
        """Send messages that wait for their rate with the next flush, since the rate changes."""
        self._conflated += self.backlog.release_limited(subscription)

    def forget(self, subscriptions: AbstractSet[Subscription], reason: str) -> None:
        """Drop all waiting messages of these subscriptions."""
        self._count_dropped(
            self.backlog.discard(subscriptions, lambda owner, _: owner in subscriptions), reason
        )

    def forget_kinds(
        self, subscription: Subscription, pending: Iterable[Pending[Subscription]], reason: str
    ) -> None:
        """Drop waiting messages of kinds that a subscription no longer asks for.

        `pending` are its messages in the backlog that are pending.
        """
        kinds = subscription.lane.kinds

        def unwanted(owner: Subscription, publication: Publication) -> bool:
            kind = publication.kind
            return owner is subscription and kind is not None and kind not in kinds

        self._count_dropped(self.backlog.discard((subscription,), unwanted, pending), reason)

    def _count_dropped(self, messages: int, reason: str) -> None:
        if messages:
            self.dropped[reason] = self.dropped.get(reason, 0) + messages

    # Replays

    def resume(self, subscription: Subscription, position: Position) -> None:
        """Make a new subscription continue from a position other than the end of the stream."""
        subscription.pinged = subscription.confirmed = position
        subscription.position = position.sequence

    def note_snapshots(
        self, subscription: Subscription, kinds: frozenset[Kind], sequence: int
    ) -> None:
        """Note that the client is sent the last known values of these kinds, up to a sequence.

        If the connection ends before it has confirmed them, they belong to the record of its
        session. A client whose messages name its positions needs no record.
        """
        if self.wire.names_positions:
            return
        if before := subscription.unconfirmed:
            kinds, sequence = kinds | before.kinds, max(sequence, before.sequence)
        stream = subscription.lane.stream
        subscription.unconfirmed = stream.sent_snapshots(kinds, sequence, self.pings)

    def _take_replay(self) -> tuple[bytes, int]:
        parts: list[Part] = []
        delivered = 0
        for subscription, missed, live in self.backlog.take_replay(REPLAY_PORTION_BYTES):
            portion = missed + live
            if self.renders:
                portion = list(map(subscription.render, portion))
            parts += self.wire.parts(portion, subscription.position, subscription.lane.stream)
            subscription.position = portion[-1].sequence
            self._replayed += sum(not publication.notice for publication in missed)
            delivered += len(live)
            for publication in live:
                if publication.epoch is not None:
                    subscription.begin_epoch(publication.epoch)
        self._delivered += delivered
        # To render one message may take milliseconds.
        least = REPLAYED_PER_TURN if self.renders else _LEAST_PER_PORTION
        self._work_now += max(len(parts), least)
        return self.wire.data(parts, self.positions), delivered

    # Taking waiting messages

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
            if self.bandwidth is not None:
                self.bandwidth.spend(len(control))
            return control, 0
        if self.corked:
            return b"", 0
        if self.bandwidth is not None:
            return self._take_paced(self.bandwidth, now_seconds)
        return self._take_data(now_seconds)

    def _take_paced(self, bandwidth: Bandwidth, now_seconds: float) -> tuple[bytes, int]:
        if not bandwidth.allows(now_seconds):
            bandwidth.is_short = self.backlog.next_seconds is not None
            return b"", 0
        bandwidth.is_short = False
        data, messages = self._take_data(now_seconds)
        bandwidth.spend(len(data))
        return data, messages

    def _take_data(self, now_seconds: float) -> tuple[bytes, int]:
        if self.backlog.replaying:
            return self._take_replay()
        if self.renders:
            self._work_now = REPLAYED_PER_TURN
            some, replaced = self.backlog.take_some(now_seconds, RENDERED_BYTES_PER_TURN)
            self._conflated += replaced
            entries = [(subscription, subscription.render(p)) for subscription, p in some]
        else:
            entries = self.backlog.take(now_seconds)
        if not entries:
            return b"", 0
        parts: list[Part] = []
        encode = self.wire.part
        for subscription, publication in entries:
            parts.append(encode(publication, subscription.position, subscription.lane.stream))
            subscription.position = publication.sequence
            if publication.epoch is not None:
                subscription.begin_epoch(publication.epoch)
        self._delivered += len(parts)
        if self.group is not None:  # messages to the user alone
            return self.wire.data_apart(parts, self.positions), len(parts)
        return self.wire.data(parts, self.positions), len(parts)

    def positions(self) -> list[Placed]:
        """Return where the client is in each topic, once it has been sent all that was taken."""
        if self.group is not None:
            return self.group.positions()
        is_gap_owed = self.backlog.is_gap_owed
        return [
            (
                subscription.lane.stream.topic,
                None if is_gap_owed(subscription) else subscription.epoch,
                subscription.position,
            )
            for subscription in self.subscriptions.values()
        ]

    def flush(self, now_seconds: float) -> int:
        """Write waiting messages until the socket is full; return how many were written.

        A long replay, and many messages to be rendered, are continued by the writer task, in later
        turns of the loop.
        """
        total = self._work_now = 0
        while not self.closed:
            data, messages = self.take(now_seconds)
            if not data:
                self.unblock()
                break
            total += messages
            if not self.write(data, messages):
                break
            if self._work_now >= REPLAYED_PER_TURN and self.backlog.has_more:
                self._block()
                break
        return total

    @property
    def max_bandwidth(self) -> float:
        """The bytes per second that the client asked to be sent at most; 0: no limit."""
        return 0.0 if self.bandwidth is None else self.bandwidth.bytes_per_second

    @property
    def may_join(self) -> bool:
        """Whether the client has no state of its own that keeps it from joining a group."""
        backlog = self.backlog
        return not (
            self.blocked
            or self.corked
            or self.closed
            or self.descriptor < 0
            or self.bandwidth is not None
            or backlog
            or backlog.replaying
        )

    def close(self, reason: str = "disconnected") -> None:
        """Stop writing for good: the descriptor may soon belong to another socket."""
        if self.closed:
            return
        self.closed = True
        self.descriptor = -1
        self._count_dropped(self.backlog.clear() + self._held_messages, reason)
        self._delivered -= self._held_messages
        self._held, self._held_messages = b"", 0
        self._control.clear()
        self.control_bytes = 0
        # The owner holds the outbox: without this, only the garbage collector would free the two.
        self._owner = NO_OWNER

    def clear(self, reason: str) -> None:
        """Drop all waiting messages, of all subscriptions together."""
        self._count_dropped(self.backlog.clear(), reason)

    @property
    def account(self) -> tuple[int, int, int]:
        """Return the messages offered, delivered and conflated up to now."""
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
        """Return the account up to now, with the messages that wait."""
        offered, delivered, conflated = self.account
        return OutboxStatistics(
            offered=offered,
            delivered=delivered,
            replayed=self._replayed,
            conflated=conflated,
            queued=len(self.backlog),
            dropped=dict(self.dropped),
            blocked=self.blocked,
            queued_bytes=self.backlog.queued_bytes,
            replay_bytes=self.backlog.replay_bytes,
        )
