"""A topic's stream, and its lanes: the topic as each sort of subscription sees it."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

from streamer.hub.publication import Publication, conflate
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic
from streamer.wire.batch import Part


class Lane:
    """A topic as the subscriptions with one mode and one choice of kinds see it."""

    __slots__ = (
        "base",
        "epoch",
        "groups",
        "kinds",
        "mode",
        "offered",
        "parts",
        "position",
        "stream",
        "whole",
    )

    def __init__(self, stream: TopicStream, mode: Mode, kinds: frozenset[Kind]) -> None:
        self.stream = stream
        self.mode = mode
        self.kinds = kinds
        self.whole = len(kinds) == len(stream.topic.kinds)
        """Whether it carries all that the topic does."""
        self.base = stream.sequence
        """The position before the first publication that the lane has seen."""
        self.position = self.head
        """The last sequence that its groups have been sent."""
        self.epoch = stream.epoch
        """The epoch of that."""
        self.groups: dict[Any, None] = {}
        """Of clients that hold the lane. Clients know their streams, and not the other way round:
        what a group is, or a subscription, is no matter of a stream."""
        self.parts: list[Part] = []
        """What the flush under way brings; empty between flushes."""
        self.offered = 0
        """How many publications that flush has for the lane, those merged away included."""

    @property
    def head(self) -> int:
        """The last sequence published that the lane carries."""
        if self.whole:
            return self.stream.sequence
        latest = self.stream.latest
        return max(
            (latest[kind].sequence for kind in self.kinds if kind in latest), default=self.base
        )

    def cut(self, window: list[Publication], *, stretched: bool) -> None:
        """Make the parts of a flush from what was published since the last one."""
        if not self.whole:
            kinds = self.kinds
            window = [p for p in window if p.kind in kinds or p.kind is None]
        if not window:
            return
        count = len(window)
        if stretched and self.mode is Mode.LATEST:
            window = conflate(window)
        if self.groups:
            position = self.position
            for publication in window:
                text = publication.text_following(position)
                self.parts.append((publication.order, text, publication.epoch is not None))
                position = publication.sequence
            self.offered = count
        self.position = window[-1].sequence
        if self.epoch != self.stream.epoch:
            self.epoch = self.stream.epoch  # the window held the gap

    def clear(self) -> None:
        """Forget the flush that is over."""
        self.parts = []
        self.offered = 0


class TopicStream:
    """One topic: its position, its last known values, and who hears it."""

    __slots__ = (
        "_naming",
        "_place",
        "epoch",
        "flushed_order",
        "former_epoch",
        "history",
        "lanes",
        "latest",
        "order",
        "sequence",
        "solos",
        "subscriptions",
        "topic",
        "window",
    )

    def __init__(self, topic: Topic, epoch: str, *, history_length: int) -> None:
        self.topic = topic
        self._naming = _naming(topic)
        self.epoch = epoch
        self.former_epoch = epoch
        """Another name of the epoch, which clients were told before its producers named it."""
        self.sequence = 0
        """Of the last publication."""
        self.order = 0
        """Of the last publication, among those of all topics."""
        self.flushed_order = 0
        """Of the last publication that a flush has brought to the groups."""
        self.latest: dict[Kind, Publication] = {}
        self.history: deque[Publication] = deque(maxlen=history_length)
        """The last publications of the epoch, without a hole."""
        self.window: list[Publication] = []
        """What was published since the last flush."""
        self.lanes: dict[tuple[Mode, frozenset[Kind]], Lane] = {}
        self.solos: dict[Any, None] = {}
        """The subscriptions of clients that stand alone."""
        self.subscriptions = 0
        self._place = Position(epoch, 0)

    def lane(self, mode: Mode, kinds: frozenset[Kind]) -> Lane:
        """The lane for subscriptions of this sort."""
        key = (mode, kinds)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(self, mode, kinds)
        return lane

    def named(self, text: bytes) -> bytes:
        """The JSON of a publication, with its topic where the message itself does not tell it."""
        return b"%b%b}" % (text[:-1], self._naming) if self._naming else text

    def place(self, epoch: str, sequence: int) -> Position:
        """A position; one object for all who stand there."""
        if self._place.sequence != sequence or self._place.epoch != epoch:
            self._place = Position(epoch, sequence)
        return self._place

    def count_missed(self, since: Position) -> int | None:
        """How much was published after a position; None where it is not known any more."""
        if since.epoch not in (self.epoch, self.former_epoch) or since.sequence > self.sequence:
            return None
        count = self.sequence - since.sequence
        return None if count > len(self.history) else count

    def missed(self, since: Position) -> list[Publication] | None:
        """All that was published after a position; None where that is not known any more."""
        count = self.count_missed(since)
        if count is None:
            return None
        return list(islice(self.history, len(self.history) - count, None))


def _naming(topic: Topic) -> bytes:
    """The members that name a topic whose messages are about something else: a sector's stocks.

    Without them a client that has two of these could not tell their sequences apart.
    """
    if topic.subscription_type in (SubscriptionType.STOCK, SubscriptionType.MARKET):
        return b""
    return b',"subscription_type":"%b","target":"%b"' % (
        topic.subscription_type.encode(),
        topic.target.encode(),
    )
