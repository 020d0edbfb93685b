"""Topics and their subscribers.

Nothing here waits, so each method is one step for all other tasks: no publication arrives between
a check and the registration that relies on it. Publications come in through `publishing`, and go
out through `fanout`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from operator import attrgetter
from typing import Final

import attrs

from streamer.hub.backlog import Pending
from streamer.hub.fanout import MESSAGES_PER_FLUSH, WRITES_PER_TURN, FanOut, Signal
from streamer.hub.outbox import Outbox, Write
from streamer.hub.parts import CLIENTS_PER_PART, Parts, completed
from streamer.hub.publication import LastValue, Publication, text_bytes
from streamer.hub.publishing import Publishing
from streamer.hub.renditions import Renditions
from streamer.hub.streams import Lane, TopicStream
from streamer.hub.subscription import Subscription, Want
from streamer.hub.traffic import Traffic
from streamer.hub.unused_topics import UnusedTopics
from streamer.hub.upstream import Upstream
from streamer.protocol.messages import GapReason, Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic

Replay = tuple[Position, Sequence[Publication], int]
"""A client's position, the publications that it has missed since, and the size of their texts."""

_NO_REPLAYS: Final[Mapping[Topic, Replay]] = {}


@attrs.frozen
class HubStatistics:
    """Counts of what the hub holds and has done."""

    topics: int
    subscriptions_by_type: dict[str, int]
    publications: int
    messages_delivered: int
    """Messages sent to all clients, those that have left included."""
    messages_conflated: int
    messages_queued: int
    messages_dropped: dict[str, int]
    blocked_clients: int
    groups: int
    delta_checksum_failures: int
    """Topics for which clients asked for whole messages, since a delta did not fit."""
    recoveries: dict[str, int]
    """Topics that clients came back to, by result: all that was missed (complete), or a gap."""


class Hub:
    """All topics and all clients of one server."""

    def __init__(
        self,
        *,
        epoch: str,
        upstream: Upstream,
        wakeup: Signal,
        clock: Callable[[], float],
        timestamp: Callable[[], str],
        linger_seconds: float,
        history_length: int,
        max_history_bytes: int,
        max_unused_topics: int = 10_000,
        max_unused_topics_per_client: int = 500,
        writes_per_turn: int = WRITES_PER_TURN,
        messages_per_flush: int = MESSAGES_PER_FLUSH,
        write: Write = os.write,
    ) -> None:
        """`write` writes to the descriptors of clients."""
        self._upstream = upstream
        self._clock = clock
        self._linger_seconds = linger_seconds
        self.recoveries = {"complete": 0, "gap": 0}
        """Recoveries since the start, of one topic each, by result."""
        self._history_length = history_length
        self.traffic = Traffic()
        self.write = write
        self.fanout = FanOut(
            wakeup,
            clock=clock,
            writes_per_turn=writes_per_turn,
            messages_per_flush=messages_per_flush,
            traffic=self.traffic,
            write=write,
        )
        self.publishing = Publishing(
            self.fanout, epoch=epoch, timestamp=timestamp, max_history_bytes=max_history_bytes
        )
        self.streams: dict[Topic, TopicStream] = {}
        self._renditions = Renditions()
        self._checksum_failures = 0
        self._unused = UnusedTopics(
            maximum=max_unused_topics, maximum_per_client=max_unused_topics_per_client
        )
        self._outboxes: dict[Outbox, None] = {}
        self._subscriptions_by_type: Counter[str] = Counter()
        self._departed_delivered = 0
        self._departed_conflated = 0
        self._departed_dropped: Counter[str] = Counter()

    # Clients

    def add(self, outbox: Outbox) -> None:
        """Add a client, which holds nothing yet."""
        self._outboxes[outbox] = None

    def retire(self, outbox: Outbox, reason: str) -> None:
        """End all subscriptions of a client; a close frame may still be on its way to it."""
        self.fanout.forget(outbox)
        outbox.clear(reason)
        for subscription in tuple(outbox.subscriptions.values()):
            self._remove(outbox, subscription)

    def remove(self, outbox: Outbox) -> None:
        """Remove a client whose connection is over; only its account remains.

        Call it before the socket is closed: the descriptor may be another socket's after that.
        """
        self.retire(outbox, "disconnected")
        outbox.close()
        del self._outboxes[outbox]
        _, delivered, conflated = outbox.account
        self._departed_delivered += delivered
        self._departed_conflated += conflated
        if outbox.dropped:
            self._departed_dropped.update(outbox.dropped)

    def subscribe(
        self,
        outbox: Outbox,
        wants: Iterable[Want],
        replays: Mapping[Topic, Replay] = _NO_REPLAYS,
    ) -> list[tuple[Subscription, frozenset[Kind]]]:
        """Subscribe a client to topics, each with the kinds whose last values it is to be sent.

        `replays` has the publications of new topics that are sent before anything live, for the
        positions that `wants` name. Topics that the client holds already are brought up to date
        first, so that their streams have no hole where the options change. Each topic is wanted
        once. If this fails half way, none of the new ones is held.
        """
        self.fanout.catch_up(outbox)
        subscriptions: list[tuple[Subscription, frozenset[Kind]]] = []
        new: list[Subscription] = []
        # Once for all topics, if at all: thousands of messages may wait.
        pending = cache(outbox.backlog.pending)
        try:
            for want in wants:
                topic, options = want.topic, want.options
                stream = self.streams.get(topic)
                if stream is None or not stream.subscriptions:
                    stream = self.stream(topic)
                lane = stream.lane(options.mode, options.kinds or topic.kind_set, options.detail)
                kinds = lane.kinds
                outbox.renders |= lane.renderer is not None
                subscription = outbox.subscriptions.get(stream)
                if subscription is None:
                    subscription = self._add(outbox, lane)
                    new.append(subscription)
                    if replays and (replay := replays.get(topic)):
                        since, missed, size_bytes = replay
                        outbox.resume(subscription, since)
                        keeps_live = options.mode is Mode.ALL
                        outbox.backlog.replay(
                            subscription, missed, size_bytes, keeps_live=keeps_live
                        )
                else:
                    # The next message of each kind is whole unless a snapshot precedes it. Of what
                    # other options sent, nothing is a base: it may have other levels.
                    subscription.held = None if lane.renderer is None else {}
                    if subscription.lane is not lane:
                        kinds = self._change_options(
                            outbox,
                            subscription,
                            lane,
                            pending().get(subscription, ()),
                            snapshot=options.snapshot,
                        )
                    elif not self._has_everything(outbox, subscription):
                        kinds = frozenset()  # the waiting messages are newer
                if lane.renderer is not None and options.snapshot and topic not in replays:
                    subscription.hold(kinds)
                if subscription.interval_seconds != options.interval_seconds:
                    outbox.release_limited(subscription)
                    subscription.interval_seconds = options.interval_seconds
                subscriptions.append((subscription, kinds))
        except BaseException:
            self._drop(outbox, new, "disconnected")
            raise
        self.fanout.join(outbox)
        return subscriptions

    def _add(self, outbox: Outbox, lane: Lane) -> Subscription:
        stream = lane.stream
        subscription = outbox.subscriptions[stream] = Subscription(lane)
        lane.subscriptions += 1
        stream.solos[subscription] = outbox
        self._subscriptions_by_type[stream.topic.subscription_type] += 1
        if not stream.subscriptions:
            self._unused.discard(stream)
            self._upstream.join(stream.topic)
        stream.subscriptions += 1
        return subscription

    def _change_options(
        self,
        outbox: Outbox,
        subscription: Subscription,
        lane: Lane,
        pending: Sequence[Pending[Subscription]],
        *,
        snapshot: bool,
    ) -> frozenset[Kind]:
        """Continue with other options; publications that the former ones left out are no hole.

        A client that has everything moves to the end of the stream as the new options see it, but
        never back. One that is behind keeps its position: waiting messages of kinds that it no
        longer asks for are dropped, and if it wants snapshots, the last values of new kinds are
        queued. `pending` are its messages that are pending. Returns the kinds whose last values are
        to be sent with the answer.
        """
        stream = lane.stream
        caught_up = self._has_everything(outbox, subscription)
        former = subscription.lane.kinds
        added = lane.kinds - former
        lane.subscriptions += 1
        stream.leave(subscription.lane)
        subscription.lane = lane
        outbox.backlog.stop_keeping(subscription)
        if not former <= lane.kinds:
            outbox.forget_kinds(subscription, pending, "unsubscribed")
        if caught_up:
            subscription.position = max(subscription.position, lane.head)
            return lane.kinds
        gap = outbox.backlog.waiting_gap(subscription, pending)
        received: set[Kind] = set()
        for latest in stream.last_values(added) if snapshot else ():
            assert latest.kind is not None  # only a notice has none
            if gap is None and latest.sequence <= subscription.position:
                received.add(latest.kind)
            elif gap is not None and latest.sequence <= gap.sequence:
                # It was known when the stream resumed, so it comes right after the gap, before
                # publications that wait behind that, and does not count as following it.
                known = LastValue(latest, gap.sequence, gap.order)
                outbox.put(subscription, known, gap=gap)
            else:
                outbox.put(subscription, latest, gap=gap)
        return frozenset(received)

    @staticmethod
    def _has_everything(outbox: Outbox, subscription: Subscription) -> bool:
        """Whether a client outside of groups has been sent all publications of a topic.

        That is so, at whatever position, once nothing waits: publications that no client is sent
        are passed over, and one restored from an older position may lack none of its kinds.
        """
        backlog = outbox.backlog
        if subscription.caught_up and not backlog.is_gap_owed(subscription):
            return True  # whoever is still to be sent a gap is at the gap's position
        is_behind = outbox.blocked or backlog.is_behind(subscription)
        return not is_behind and subscription.seen_order == subscription.lane.stream.order

    def unsubscribe(self, outbox: Outbox, topics: Iterable[Topic]) -> None:
        """End subscriptions: nothing of these topics is written after this."""
        self.fanout.leave(outbox)
        streams = map(self.streams.get, topics)
        held = [outbox.subscriptions[s] for s in streams if s in outbox.subscriptions]
        self._drop(outbox, held, "unsubscribed")
        self.fanout.join(outbox)

    def _drop(self, outbox: Outbox, subscriptions: Collection[Subscription], reason: str) -> None:
        outbox.forget(frozenset(subscriptions), reason)
        for subscription in subscriptions:
            self._remove(outbox, subscription)

    def _remove(self, outbox: Outbox, subscription: Subscription) -> None:
        stream = subscription.lane.stream
        del outbox.subscriptions[stream]
        del stream.solos[subscription]
        stream.leave(subscription.lane)
        stream.subscriptions -= 1
        self._subscriptions_by_type[stream.topic.subscription_type] -= 1
        if not stream.subscriptions:
            self._linger(stream, outbox.name)

    def resync(
        self, outbox: Outbox, topics: Iterable[Topic]
    ) -> list[tuple[Lane, list[Publication]]]:
        """Return, for each of these topics that a client holds, the messages that it lacks.

        They are those that the next deltas change. Without deltas, they are the last known values,
        unless newer ones wait for the client. They are still to be made whole (`whole_in_parts`).
        """
        self.fanout.leave(outbox)
        answer: list[tuple[Lane, list[Publication]]] = []
        for topic in topics:
            subscription = outbox.subscriptions.get(self.streams.get(topic))
            if subscription is None:
                continue
            lane = subscription.lane
            if lane.renderer is not None and lane.renderer.detail.delta:
                self._checksum_failures += 1
                assert subscription.held is not None
                known = sorted(subscription.held.values(), key=attrgetter("order"))
            else:
                has_everything = self._has_everything(outbox, subscription)
                known = self.snapshot(subscription, lane.kinds) if has_everything else []
            answer.append((lane, known))
        self.fanout.join(outbox)
        return answer

    def mark_ping(self, outbox: Outbox) -> None:
        """Remember the client's positions before the ping that is sent next."""
        outbox.pings += 1
        if not self.fanout.is_owed(outbox):
            is_gap_owed = outbox.backlog.is_gap_owed
            for subscription in outbox.subscriptions.values():
                # The ping overtakes a gap that waits, and whoever has not received that must be
                # sent it again. It also overtakes last known values that are being made.
                is_owed = is_gap_owed(subscription)
                if not is_owed:
                    subscription.pinged = self.position(subscription)
                if (is_owed or outbox.corked) and (sent := subscription.unconfirmed):
                    subscription.unconfirmed = attrs.evolve(sent, pings=outbox.pings)

    def mark_pong(self, outbox: Outbox) -> None:
        """Note that a client has received everything that was sent before the last ping."""
        for subscription in outbox.subscriptions.values():
            subscription.confirmed = subscription.pinged
            sent = subscription.unconfirmed
            if sent is not None and sent.pings < outbox.pings:
                subscription.unconfirmed = None

    def announce_hole(
        self,
        outbox: Outbox,
        subscription: Subscription,
        since: Position,
        reason: GapReason,
        position: Position,
    ) -> None:
        """Send a client that has just subscribed a gap, and the last known values after it.

        Until the client is known to have received the gap, it counts as being at `since`, from
        which a session that is restored meanwhile continues: with a gap again. The stream resumes
        at `position`: its end, or further ahead if another server was ahead of this one. Then the
        values here are old, and publications up to `position` are not sent.
        """
        stream = subscription.lane.stream
        self.fanout.leave(outbox)
        if subscription.held is not None:
            subscription.held = {}
        notices = [self.publishing.gap(stream.topic, reason, position)]
        if position == self.position(subscription):
            known = self.snapshot(subscription, subscription.lane.kinds)
            notices += [self.publishing.last_value(last, position.sequence) for last in known]
            outbox.note_snapshots(subscription, subscription.lane.kinds, position.sequence)
        else:
            outbox.resume(subscription, position)
            subscription.skip_sequence = position.sequence
        keeps_live = subscription.lane.mode is Mode.ALL
        size_bytes = text_bytes(notices)
        outbox.backlog.replay(subscription, notices, size_bytes, keeps_live=keeps_live)
        subscription.pinged = subscription.confirmed = since

    def missed(
        self,
        topic: Topic,
        since: Position,
        kinds: Collection[Kind] = (),
        max_bytes: float = math.inf,
    ) -> tuple[list[Publication], int] | None:
        """Return the publications of these kinds (none: all) that a client has missed.

        With the size of their texts in bytes, since to look at each of thousands takes time.
        None if they are not known any more, or have more than `max_bytes`.
        """
        return self.stream(topic).missed(since, kinds, max_bytes)

    def position(self, subscription: Subscription) -> Position:
        """Return the position that the client's next message of a topic follows."""
        lane = subscription.lane
        stream = lane.stream
        if subscription in stream.solos:
            return stream.position_at(subscription.epoch, subscription.position)
        return stream.position_at(lane.epoch, lane.position)

    def snapshot(self, subscription: Subscription, kinds: Iterable[Kind]) -> list[Publication]:
        """Return the last known values of some kinds of a topic, oldest first."""
        return subscription.lane.stream.last_values(kinds)

    def stream(self, topic: Topic) -> TopicStream:
        """Return the stream of a topic; a new one is requested from the source.

        It is released after the linger time unless a client subscribes.
        """
        stream = self.streams.get(topic)
        if stream is None:
            stream = TopicStream(
                topic,
                self.publishing.new_epoch(),
                history_length=self._history_length,
                renditions=self._renditions,
            )
            self.streams[topic] = stream
            self._upstream.want(stream)
        if not stream.subscriptions:
            self._linger(stream, None)  # the caller is about to subscribe
        return stream

    @contextmanager
    def awaiting(self, topics: Iterable[Topic]) -> Iterator[list[TopicStream]]:
        """Keep topics while a client waits until they are live, and yield their streams.

        That takes longer than the linger time when thousands of clients return to a new server.
        """
        streams = list(map(self.stream, topics))
        for stream in streams:
            stream.awaited += 1
        try:
            yield streams
        finally:
            for stream in streams:
                stream.awaited -= 1

    def _linger(self, stream: TopicStream, client: str | None) -> None:
        """Keep an unused topic for the linger time, if the bounds allow it."""
        deadline = self._clock() + self._linger_seconds
        for surplus in self._unused.add(stream, deadline, client):
            self._release(surplus)

    def release_unused(self, limit: int | None = None) -> bool:
        """Release topics that nobody has had or waited for in the linger time.

        At most `limit` of them; returns whether there may be more.
        """
        released = 0
        for stream in list(islice(self._unused.take_due(self._clock()), limit)):
            if stream.awaited:
                self._linger(stream, None)
            else:
                self._release(stream)
                released += 1
        return released == limit

    def expire_history(self, last_order: int) -> None:
        """Forget the publications of all topics up to an order."""
        for stream in self.streams.values():
            self.publishing.expire_history(stream, last_order)

    def _release(self, stream: TopicStream) -> None:
        self.publishing.forget_history(stream)
        stream.lanes.clear()  # lanes refer to the stream: no cycle for the garbage collector
        del self.streams[stream.topic]
        self._upstream.release(stream.topic)

    def subscribers(self, topic: Topic) -> list[str]:
        """Return the names (session ids) of the clients that hold a topic."""
        return [
            outbox.name
            for outbox in self._outboxes
            if self.streams.get(topic) in outbox.subscriptions
        ]

    def statistics(self) -> HubStatistics:
        """Return the account of all clients, those that have left included."""
        return completed(self.statistics_in_parts())

    def statistics_in_parts(self) -> Parts[HubStatistics]:
        """Return the same in parts, between which the event loop may serve clients.

        Each client that is there at the beginning is counted once, as it is when its part comes; so
        no counter is ever less than it was in earlier statistics.
        """
        dropped = Counter(self._departed_dropped)
        departed_delivered = self._departed_delivered
        departed_conflated = self._departed_conflated
        blocked = 0
        delivered_now = conflated_now = queued = 0
        # Up to 10,000, so no object is made for each.
        for number, outbox in enumerate(tuple(self._outboxes), 1):
            if number % CLIENTS_PER_PART == 0:
                yield
            _, delivered, conflated = outbox.account
            delivered_now += delivered
            conflated_now += conflated
            queued += len(outbox.backlog)
            blocked += outbox.blocked
            if outbox.dropped:
                dropped.update(outbox.dropped)
        return HubStatistics(
            topics=len(self.streams),
            subscriptions_by_type={
                kind: self._subscriptions_by_type[kind] for kind in SubscriptionType
            },
            publications=self.publishing.publications,
            messages_delivered=departed_delivered + delivered_now,
            messages_conflated=departed_conflated + conflated_now,
            messages_queued=queued,
            messages_dropped={reason: count for reason, count in dropped.items() if count},
            blocked_clients=blocked,
            groups=self.fanout.groups,
            delta_checksum_failures=self._checksum_failures,
            recoveries=dict(self.recoveries),
        )
