"""Topic -> subscribers: who hears what.

Nothing here waits, so whatever a method does is one step for everybody else: there is no moment
between looking and registering. What brings publications to clients is in `fanout`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Final

import attrs

from streamer.hub.fanout import WRITES_PER_TURN, FanOut
from streamer.hub.outbox import Outbox, Subscription
from streamer.hub.publication import Publication
from streamer.hub.streams import Lane, TopicStream
from streamer.hub.upstream import Upstream
from streamer.protocol.codec import encode
from streamer.protocol.messages import Gap, GapReason, Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic
from streamer.wire.batch import batch_frames

_ORDER: Final = attrgetter("order")


@attrs.frozen
class SubscriptionRequest:
    """What a client asks for of one topic."""

    topic: Topic
    mode: Mode = Mode.LATEST
    kinds: frozenset[Kind] = frozenset()
    """Empty: all that the topic carries."""
    interval_seconds: float = 0.0


@attrs.frozen
class HubStatistics:
    """What the hub holds and has done."""

    topics: int
    subscriptions_by_type: dict[str, int]
    publications: int
    messages_delivered: int
    """To all clients, those that have left included."""
    messages_conflated: int
    messages_queued: int
    messages_dropped: dict[str, int]
    blocked_clients: int
    groups: int


class Hub:
    """All topics and all clients of one server."""

    def __init__(
        self,
        *,
        epoch: str,
        upstream: Upstream,
        on_dirty: Callable[[], None],
        clock: Callable[[], float],
        timestamp: Callable[[], str],
        linger_seconds: float,
        history_length: int,
        max_history_bytes: int,
        writes_per_turn: int = WRITES_PER_TURN,
    ) -> None:
        self._epoch = epoch
        self._epochs = itertools.count(1)
        self._upstream = upstream
        self._clock = clock
        self._timestamp = timestamp
        self._linger_seconds = linger_seconds
        self._history_length = history_length
        self._max_history_bytes = max_history_bytes
        self.fanout = FanOut(
            on_dirty=on_dirty, clock=clock, timestamp=timestamp, writes_per_turn=writes_per_turn
        )
        self._history_bytes = 0
        self.streams: dict[Topic, TopicStream] = {}
        self._lingering: dict[TopicStream, float] = {}
        self._outboxes: dict[Outbox, None] = {}
        self._orders = itertools.count(1)
        self.order = 0
        """Of the last publication of any topic; they count up."""
        self._publications = 0
        self._subscriptions_by_type: Counter[str] = Counter()
        self._departed: Counter[str] = Counter()
        self._departed_dropped: Counter[str] = Counter()

    # Publications

    def publish(self, stream: TopicStream, kind: Kind, text: bytes) -> None:
        """Take a publication from a producer that gives no position: it gets the next one."""
        sequence = stream.sequence + 1
        self.publish_positioned(
            stream, kind, b'%b,"sequence":%d}' % (text[:-1], sequence), sequence
        )

    def publish_positioned(
        self, stream: TopicStream, kind: Kind, text: bytes, sequence: int
    ) -> None:
        """Take the publication that follows the last one, its `sequence` already in its text."""
        stream.sequence = sequence
        text = stream.named(text)
        publication = Publication(kind, sequence, next(self._orders), text)
        stream.latest[kind] = publication
        history = stream.history
        self._history_bytes += len(text)
        while history and (
            len(history) == history.maxlen or self._history_bytes > self._max_history_bytes
        ):
            self._forget_oldest(stream)
        history.append(publication)
        self._publications += 1
        self._append(stream, publication)

    def _forget_oldest(self, stream: TopicStream) -> None:
        self._history_bytes -= len(stream.history.popleft().text)

    def _forget_history(self, stream: TopicStream) -> None:
        self._history_bytes -= sum(len(publication.text) for publication in stream.history)
        stream.history.clear()

    def _append(self, stream: TopicStream, publication: Publication) -> None:
        self.order = stream.order = publication.order
        if not stream.window:
            self.fanout.mark_dirty(stream)
        stream.window.append(publication)

    def start_epoch(
        self,
        stream: TopicStream,
        reason: GapReason,
        position: Position,
        latest: Iterable[tuple[Kind, int, bytes]] = (),
    ) -> None:
        """Announce a hole: the stream resumes at `position`, in an epoch that may be new.

        The gap stands between what was published before the hole and after it. The last known
        values are forgotten, since after a hole nobody knows whether they are still true; `latest`
        are the new ones (kind, sequence, JSON) where they are known.
        """
        topic = stream.topic
        self.adopt(stream, position, latest)
        gap = Gap(topic.subscription_type, topic.target, reason, position.epoch, position.sequence)
        self._notice(stream, encode(gap, self._timestamp()), position.epoch)
        for publication in sorted(stream.latest.values(), key=_ORDER):
            self._notice(stream, publication.snapshot_text, None)

    def adopt(
        self,
        stream: TopicStream,
        position: Position,
        latest: Iterable[tuple[Kind, int, bytes]] = (),
    ) -> None:
        """Take over the position that the producers keep; no client has been told another."""
        stream.epoch = stream.former_epoch = position.epoch
        stream.sequence = position.sequence
        stream.latest.clear()
        self._forget_history(stream)
        for kind, sequence, text in latest:
            named = stream.named(text)
            stream.latest[kind] = Publication(kind, sequence, next(self._orders), named)
        for lane in stream.lanes.values():
            lane.base = position.sequence
            if not stream.subscriptions:
                lane.epoch, lane.position = position.epoch, position.sequence
        if not stream.subscriptions:
            stream.window.clear()

    def rename_epoch(self, stream: TopicStream, epoch: str) -> None:
        """Go on in the producers' epoch, where nothing was published in the one clients were told.

        No gap: to them, the old name still means the same place (`TopicStream.missed`).
        """
        stream.former_epoch, stream.epoch = stream.epoch, epoch
        for lane in stream.lanes.values():
            lane.epoch = epoch
        for subscription in stream.solos:
            subscription.epoch = epoch

    def extend_history(
        self, stream: TopicStream, earlier: Sequence[tuple[Kind, int, bytes]]
    ) -> None:
        """Put what was published just before the oldest publication kept in front of it."""
        maxlen = stream.history.maxlen or 0
        for kind, sequence, text in reversed(earlier):
            # Old, but only now known: they are kept as long as if they were new.
            publication = Publication(kind, sequence, self.order, stream.named(text))
            history_bytes = self._history_bytes + len(publication.text)
            if len(stream.history) == maxlen or history_bytes > self._max_history_bytes:
                return
            self._history_bytes = history_bytes
            stream.history.appendleft(publication)

    def expire_history(self, last_order: int) -> None:
        """Forget what was published up to that order, among all topics."""
        for stream in self.streams.values():
            while stream.history and stream.history[0].order <= last_order:
                self._forget_oldest(stream)

    def _notice(self, stream: TopicStream, text: bytes, epoch: str | None) -> None:
        order = next(self._orders)
        self._append(stream, Publication(None, stream.sequence, order, text, epoch=epoch))

    def new_epoch(self) -> str:
        """An epoch that no other stream has or had, on any instance."""
        return f"{self._epoch}-{next(self._epochs)}"

    # Clients

    def add(self, outbox: Outbox) -> None:
        """A client has arrived."""
        self._outboxes[outbox] = None

    def retire(self, outbox: Outbox, reason: str) -> None:
        """Give up all that a client subscribed to; a close frame may still be on its way to it."""
        self.fanout.forget(outbox)
        for subscription in tuple(outbox.subscriptions.values()):
            self._drop(subscription, reason)

    def remove(self, outbox: Outbox) -> None:
        """A client has gone: nothing of it remains but its account.

        Call it before the socket is closed: its descriptor may then be somebody else's.
        """
        self.retire(outbox, "disconnected")
        outbox.close()
        del self._outboxes[outbox]
        account = outbox.statistics()
        self._departed.update(delivered=account.delivered, conflated=account.conflated)
        self._departed_dropped.update(account.dropped)

    def subscribe(
        self, outbox: Outbox, requests: Iterable[SubscriptionRequest]
    ) -> list[Subscription]:
        """Register a client for topics; its streams go on from the positions of the result.

        What it already holds is brought up to date first, so that its stream has no hole at the
        place where the options change.
        """
        self.fanout.catch_up(outbox)
        subscriptions = []
        for request in requests:
            stream = self.stream(request.topic)
            self._lingering.pop(stream, None)
            lane = stream.lane(request.mode, request.kinds or frozenset(request.topic.kinds))
            subscription = outbox.subscriptions.get(stream)
            if subscription is None:
                subscription = outbox.subscriptions[stream] = Subscription(outbox, lane)
                stream.solos[subscription] = None
                stream.subscriptions += 1
                if stream.subscriptions == 1:
                    self._upstream.join(request.topic)
                self._subscriptions_by_type[request.topic.subscription_type] += 1
            elif subscription.lane is not lane:
                self._change_options(subscription, lane)
            subscription.interval_seconds = request.interval_seconds
            subscriptions.append(subscription)
        self.fanout.join(outbox)
        return subscriptions

    def _change_options(self, subscription: Subscription, lane: Lane) -> None:
        """Go on with other options. What the old ones left out was not asked for: it is no hole.

        A client that is behind gets no snapshots; the last values of kinds that are new to it wait
        among what it has still to get.
        """
        stream = lane.stream
        outbox = subscription.outbox
        # One that came back from an older position has all that it asked for when nothing waits.
        caught_up = subscription.caught_up or not (outbox.blocked or outbox.pending)
        added = lane.kinds - subscription.lane.kinds
        subscription.lane = lane
        if caught_up:
            subscription.position = lane.head
            return
        for kind in added:
            latest = stream.latest.get(kind)
            if latest is not None and subscription.is_ahead(latest):
                outbox.put(subscription, latest)

    def unsubscribe(self, outbox: Outbox, topics: Iterable[Topic]) -> None:
        """Give topics up: nothing of them is written after this."""
        self.fanout.leave(outbox)
        for topic in topics:
            stream = self.streams.get(topic)
            if stream is not None and stream in outbox.subscriptions:
                self._drop(outbox.subscriptions[stream], "unsubscribed")
        self.fanout.join(outbox)

    def _drop(self, subscription: Subscription, reason: str) -> None:
        stream = subscription.lane.stream
        outbox = subscription.outbox
        outbox.forget(subscription, reason)
        del outbox.subscriptions[stream]
        del stream.solos[subscription]
        stream.subscriptions -= 1
        self._subscriptions_by_type[stream.topic.subscription_type] -= 1
        if not stream.subscriptions:
            self._lingering[stream] = self._clock() + self._linger_seconds

    def mark_ping(self, outbox: Outbox) -> None:
        """Remember what the client has been sent before the ping that follows now."""
        if not self.fanout.is_owed(outbox):
            for subscription in outbox.subscriptions.values():
                subscription.pinged = self.position(subscription)

    def mark_pong(self, outbox: Outbox) -> None:
        """The client has answered: it has received what it was sent before the ping."""
        for subscription in outbox.subscriptions.values():
            subscription.confirmed = subscription.pinged

    def missed(self, request: SubscriptionRequest, since: Position) -> list[Publication] | None:
        """What a subscription would have received since a position; None where it is not known."""
        missed = self.stream(request.topic).missed(since)
        if missed is None or not request.kinds:
            return missed
        return [publication for publication in missed if publication.kind in request.kinds]

    def replay(
        self, subscription: Subscription, since: Position, missed: Sequence[Publication]
    ) -> bytes:
        """The frames of what was missed, for a client that has just subscribed.

        They go out with the answer, before the live flow, which follows what they end with.
        """
        subscription.pinged = subscription.confirmed = since
        position = since.sequence
        texts = []
        for publication in missed:
            texts.append(publication.text_following(position))
            position = publication.sequence
        if position != self.position(subscription).sequence:
            # It comes from other options, under which it was sent more: it stands alone for now.
            self.fanout.leave(subscription.outbox)
            subscription.position = position
        subscription.outbox.count_replayed(len(texts))
        return batch_frames(texts, self._timestamp)

    def position(self, subscription: Subscription) -> Position:
        """What the client has been sent of a topic: the next message follows it."""
        at = subscription if subscription.outbox.group is None else subscription.lane
        return subscription.lane.stream.place(at.epoch, at.position)

    def snapshot(self, subscription: Subscription) -> list[bytes]:
        """The last known values for a client that has just subscribed, oldest first.

        None for a client that is behind: what waits for it is newer than what it holds already.
        """
        lane = subscription.lane
        if not subscription.caught_up:
            return []
        latest = (lane.stream.latest.get(kind) for kind in lane.kinds)
        known = sorted((p for p in latest if p is not None), key=_ORDER)
        return [publication.snapshot_text for publication in known]

    def stream(self, topic: Topic) -> TopicStream:
        """The stream of a topic; a new one is asked for upstream, and let go if nobody joins it."""
        stream = self.streams.get(topic)
        if stream is None:
            stream = TopicStream(topic, self.new_epoch(), history_length=self._history_length)
            self.streams[topic] = stream
            self._upstream.want(stream)
        # (Again) at the end of the line: whoever asked is about to subscribe.
        self._lingering.pop(stream, None)
        if not stream.subscriptions:
            self._lingering[stream] = self._clock() + self._linger_seconds
        return stream

    def release_unused(self) -> None:
        """Let go of the topics that nobody has had for the linger time."""
        now = self._clock()
        for stream, deadline in tuple(self._lingering.items()):
            if deadline > now:
                return  # they stand in the order of their deadlines
            del self._lingering[stream]
            self._forget_history(stream)
            del self.streams[stream.topic]
            self._upstream.release(stream.topic)

    def subscribers(self, topic: Topic) -> list[str]:
        """The names (session ids) of the clients that hold a topic."""
        return [
            outbox.name
            for outbox in self._outboxes
            if self.streams.get(topic) in outbox.subscriptions
        ]

    def statistics(self) -> HubStatistics:
        """The account of all clients, those that have left included."""
        dropped = Counter(self._departed_dropped)
        blocked = 0
        delivered_now = conflated_now = queued = 0
        for outbox in self._outboxes:  # 10,000 of them, so nothing is made for each
            _, delivered, conflated = outbox.account
            delivered_now += delivered
            conflated_now += conflated
            queued += len(outbox.pending)
            blocked += outbox.blocked
            if outbox.dropped:
                dropped.update(outbox.dropped)
        return HubStatistics(
            topics=len(self.streams),
            subscriptions_by_type={
                kind: self._subscriptions_by_type[kind] for kind in SubscriptionType
            },
            publications=self._publications,
            messages_delivered=self._departed["delivered"] + delivered_now,
            messages_conflated=self._departed["conflated"] + conflated_now,
            messages_queued=queued,
            messages_dropped={reason: count for reason, count in dropped.items() if count},
            blocked_clients=blocked,
            groups=self.fanout.groups,
        )
