"""Subscriptions: what a client asks for, and how much of it the client has been sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from streamer.hub.publication import Publication
from streamer.hub.renditions import WHOLE, Detail, Held
from streamer.hub.streams import Lane, SentSnapshots
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic


@attrs.frozen
class SubscriptionOptions:
    """The options of a subscription."""

    mode: Mode = Mode.LATEST
    kinds: frozenset[Kind] = frozenset()
    """Empty: all that the topic carries."""
    interval_seconds: float = 0.0
    """The least time between two messages of one kind; 0: no limit."""
    snapshot: bool = True
    """Whether the client wants the last known values."""
    detail: Detail = WHOLE
    """Whether it wants deltas, and how many levels of a book."""


_USUAL: Final = SubscriptionOptions()


@attrs.define
class Want:
    """A topic that a client asks for. Those of one request share their options.

    Not frozen, as that takes three times as long to make: there is one for each topic of a request.
    """

    topic: Topic
    options: SubscriptionOptions = _USUAL
    since: Position | None = None
    """The position that the client names; None: it holds none."""
    unavailable: bool = False
    """Whether the source could not be asked for the publications after that position."""
    unconfirmed: SentSnapshots | None = None
    """Last known values that the former connection was sent, and that may not have arrived."""


class Subscription:
    """One client's subscription to one topic, and how much of the topic it has been sent."""

    __slots__ = (
        "confirmed",
        "due_seconds",
        "epoch",
        "held",
        "interval_seconds",
        "lane",
        "pinged",
        "position",
        "scheduled",
        "seen_order",
        "skip_sequence",
        "unconfirmed",
        "waiting",
    )

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.interval_seconds = 0.0
        """The least time between two messages of one kind (`max_rate`); 0: no limit."""
        self.due_seconds = 0.0
        """When the next message may be sent, on the hub's clock."""
        self.waiting: tuple[Publication, ...] = ()
        self.scheduled = False
        stream = lane.stream
        self.position = stream.sequence if lane.whole else lane.head
        """The last sequence put on the connection. In a group, the lane's position counts, except
        for a topic of messages to one user."""
        self.seen_order = stream.order
        """The order of the last publication that was offered, or published before the client
        subscribed."""
        self.skip_sequence = 0
        """Publications of this epoch up to this sequence are not sent: the client has received them
        from another server, which was ahead of this one."""
        self.epoch = stream.epoch
        """The epoch of `position`."""
        self.held: Held | None = None if lane.renderer is None else {}
        """The bases of the next deltas. In a group, that of the lane counts."""
        self.pinged = self.confirmed = stream.position_at(self.epoch, self.position)
        """The positions that the client was at when last pinged, and at the last answered ping."""
        self.unconfirmed: SentSnapshots | None = None
        """The last known values that were sent with an answer, or after a gap to this client alone,
        and not confirmed by a ping since."""

    @property
    def caught_up(self) -> bool:
        """Whether the client has been sent everything that the lane carries."""
        return self.position >= self.lane.head and self.epoch == self.lane.stream.epoch

    def begin_epoch(self, epoch: str) -> None:
        """Continue in the epoch of a gap that is sent now.

        Its producers may have named it otherwise while the gap waited.
        """
        stream = self.lane.stream
        self.epoch = stream.epoch if epoch == stream.former_epoch else epoch

    def hold(self, kinds: Iterable[Kind]) -> None:
        """Note that the client is sent the last values of these kinds."""
        if self.held is not None and self.lane.renderer is not None:
            self.held |= self.lane.renderer.held(self.lane.stream.latest, kinds)

    def render(self, publication: Publication) -> Publication:
        """Return what the client is sent of the next publication."""
        if self.held is None or self.lane.renderer is None:
            return publication
        return self.lane.renderer.render(publication, self.held)
