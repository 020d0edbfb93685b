"""Publishing to the streams of a hub: publications in order, histories, gaps and epochs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from streamer.hub.fanout import FanOut
from streamer.hub.publication import LastValue, Publication, text_bytes
from streamer.hub.streams import TopicStream
from streamer.protocol.codec import encode
from streamer.protocol.messages import Gap, GapReason, Position
from streamer.protocol.topics import Kind, Topic


class Publishing:
    """Publishes to topic streams, and keeps their histories within one bound."""

    def __init__(
        self,
        fanout: FanOut,
        *,
        epoch: str,
        timestamp: Callable[[], str],
        max_history_bytes: int,
    ) -> None:
        """`epoch` begins the names of all epochs that are made here."""
        self._fanout = fanout
        self._epoch = epoch
        self._epochs = itertools.count(1)
        self._timestamp = timestamp
        self._max_history_bytes = max_history_bytes
        self.history_bytes = 0
        """The size of the texts in all histories."""
        self._orders = itertools.count(1)
        self.order = 0
        """The order of the last publication of any topic; orders count up."""
        self.publications = 0
        """Publications since the start, gaps and last known values aside."""

    def publish(self, stream: TopicStream, kind: Kind, text: bytes) -> None:
        """Publish a message whose producer gives no position; it gets the next one."""
        sequence = stream.sequence + 1
        self.publish_positioned(
            stream, kind, b'%b,"sequence":%d}' % (text[:-1], sequence), sequence
        )

    def publish_positioned(
        self, stream: TopicStream, kind: Kind, text: bytes, sequence: int
    ) -> None:
        """Publish the message that follows the last one; its text contains its `sequence`."""
        stream.sequence = sequence
        text = stream.named(text)
        publication = Publication(kind, sequence, next(self._orders), text)
        stream.latest[kind] = publication
        history = stream.history or stream.new_history()
        self.history_bytes += len(text)
        while history and (
            len(history) == history.maxlen or self.history_bytes > self._max_history_bytes
        ):
            self._forget_oldest(stream)
        history.append(publication)
        self.publications += 1
        self._append(stream, publication)

    def _forget_oldest(self, stream: TopicStream) -> None:
        self.history_bytes -= len(stream.history.popleft().text)

    def _append(self, stream: TopicStream, publication: Publication) -> None:
        self.order = stream.order = publication.order
        if not stream.window:
            self._fanout.mark_dirty(stream)
        stream.window.append(publication)

    def leave_out(self, stream: TopicStream, sequence: int) -> None:
        """Pass over a publication that no client can be sent, as a gap has announced.

        The next message follows the one before it, by its `previous`. Clients that return with an
        earlier position are sent a gap.
        """
        stream.sequence = sequence
        self.forget_history(stream)

    def start_epoch(
        self,
        stream: TopicStream,
        reason: GapReason,
        position: Position,
        latest: Iterable[tuple[Kind, int, bytes]] = (),
    ) -> None:
        """Announce a hole: the stream resumes at `position`, in an epoch that may be new.

        The gap is sent between the publications before the hole and those after it. The last known
        values are forgotten, since they may have changed in the hole; `latest` are the new ones
        (kind, sequence, JSON), if they are known. Subscriptions get those of the kinds that they
        ask for.
        """
        self.adopt(stream, position, latest)
        stream.resumed_sequence = position.sequence
        known = stream.last_values(stream.topic.kinds)
        self._append(stream, self.gap(stream.topic, reason, position))
        for publication in known:
            self._append(stream, self.last_value(publication, position.sequence))

    def adopt(
        self,
        stream: TopicStream,
        position: Position,
        latest: Iterable[tuple[Kind, int, bytes]] = (),
    ) -> None:
        """Continue from the position that the producers keep."""
        stream.book_is_unknown = False
        stream.resumed_sequence = 0
        stream.epoch = stream.former_epoch = position.epoch
        stream.sequence = position.sequence
        stream.latest.clear()
        self.forget_history(stream)
        for kind, sequence, text in latest:
            named = stream.named(text)
            stream.latest[kind] = Publication(kind, sequence, next(self._orders), named)
        for lane in stream.lanes.values():
            lane.base = position.sequence
            if not stream.subscriptions:
                lane.epoch, lane.position = position.epoch, position.sequence
                lane.hold_latest()
        if not stream.subscriptions:
            stream.window.clear()

    def rename_epoch(self, stream: TopicStream, epoch: str) -> None:
        """Adopt the producers' name for the epoch, in which nothing has been published so far.

        There is no gap: in a `since`, the former name still means the same (`TopicStream.missed`).
        """
        stream.former_epoch, stream.epoch = stream.epoch, epoch
        for lane in stream.lanes.values():
            lane.epoch = epoch
        for subscription in stream.solos:
            subscription.epoch = epoch

    def extend_history(
        self, stream: TopicStream, earlier: Sequence[tuple[Kind, int, bytes]]
    ) -> None:
        """Prepend publications that come just before the oldest one kept."""
        history = stream.history or stream.new_history()
        for kind, sequence, text in reversed(earlier):
            # They are old but only known from now on, so they are kept as long as new ones.
            publication = Publication(kind, sequence, self.order, stream.named(text))
            history_bytes = self.history_bytes + len(publication.text)
            if len(history) == history.maxlen or history_bytes > self._max_history_bytes:
                return
            self.history_bytes = history_bytes
            history.appendleft(publication)
            if kind is Kind.ORDERBOOK:
                # Clients may continue from this book: changes after it are not left out silently.
                stream.book_is_unknown = False

    def expire_history(self, stream: TopicStream, last_order: int) -> None:
        """Forget the publications of a topic up to an order."""
        while stream.history and stream.history[0].order <= last_order:
            self._forget_oldest(stream)
        if not stream.history:
            stream.forget_history()

    def forget_history(self, stream: TopicStream) -> None:
        """Forget all publications of a topic."""
        self.history_bytes -= text_bytes(stream.history)
        stream.forget_history()

    def gap(self, topic: Topic, reason: GapReason, position: Position) -> Publication:
        """Return a notice of a hole in a stream, which resumes at `position`."""
        epoch, sequence = position.epoch, position.sequence
        gap = Gap(topic.subscription_type, topic.target, reason, epoch, sequence)
        text = encode(gap, self._timestamp())
        order = next(self._orders)
        return Publication(None, sequence, order, text, epoch=epoch, notice=True)

    def last_value(self, publication: Publication, sequence: int) -> Publication:
        """Return a notice of a last known value, for receivers that are at `sequence`."""
        return LastValue(publication, sequence, next(self._orders))

    def owns_epoch(self, epoch: str) -> bool:
        """Whether this hub has made an epoch that only this server knows.

        One that it has begun in Redis, `NAME@MILLISECONDS`, is that of all servers and producers.
        """
        return epoch.startswith(f"{self._epoch}-") and "@" not in epoch

    def new_epoch(self) -> str:
        """Return an epoch that no other stream has or had, on any instance."""
        return f"{self._epoch}-{next(self._epochs)}"
