"""A topic's stream and its lanes, one for each choice of options of its subscriptions."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import attrs
import orjson

from streamer.hub.parts import Parts
from streamer.hub.publication import Publication, conflate, text_bytes
from streamer.hub.renditions import WHOLE, Detail, Held, Renderer, Renditions
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic
from streamer.wire.format import Part, WireFormat

_ORDER: Final = attrgetter("order")

_CUT_BYTES_PER_PART: Final = 128 * 1024
"""Bytes of order books that are cut to a depth in one part: about 2 ms."""

_MISSED_PORTION: Final = 100
"""Missed publications that are looked at before their size is compared with its bound."""


@attrs.frozen
class SentSnapshots:
    """Last known values that a client was sent and that it has not confirmed."""

    kinds: frozenset[Kind]
    sequence: int
    """None of the values is newer."""
    pings: int = 0
    """How many pings the client had been sent before: a later one confirms them."""


class Lane:
    """The part of a topic that subscriptions with one mode, kinds and detail receive."""

    __slots__ = (
        "_cut_held",
        "_cut_position",
        "_parts",
        "_rendered",
        "_window",
        "base",
        "delivered_total",
        "detail",
        "epoch",
        "groups",
        "held",
        "kinds",
        "mode",
        "offered",
        "offered_total",
        "position",
        "renderer",
        "roster",
        "stream",
        "subscriptions",
        "whole",
    )

    def __init__(
        self,
        stream: TopicStream,
        mode: Mode,
        kinds: frozenset[Kind],
        renderer: Renderer | None = None,
    ) -> None:
        self.stream = stream
        self.mode = mode
        self.kinds = kinds
        self.whole = len(kinds) == len(stream.topic.kinds)
        """Whether it carries every kind of the topic."""
        self.renderer = renderer
        """Makes what is sent of a publication; None: its own text."""
        self.detail = WHOLE if renderer is None else renderer.detail
        """How much is sent of prices and books."""
        self.held: Held | None = None
        """The bases of its groups' next deltas; None without a renderer."""
        self._cut_held: Held = {}
        """The same before the flush under way."""
        self.base = stream.sequence
        """The sequence before the first publication of the lane."""
        self.position = self.head
        """The last sequence that its groups have been sent."""
        self.epoch = stream.epoch
        """The epoch of `position`."""
        self.hold_latest()
        self.groups: dict[Any, None] = {}
        """The groups of clients that hold the lane. `Any`, since `group` imports this module."""
        self.roster: Any = None
        """How a flush of this lane alone writes to them (`streamer.hub.roster`): made when it is
        needed, forgotten when members come, go or get another descriptor. `Any` as above."""
        self.subscriptions = 0
        """How many clients hold it, those outside of groups included."""
        self.offered = 0
        """How many publications the flush under way has for the lane's groups, those merged away
        included; 0 between flushes."""
        self.offered_total = 0
        self.delivered_total = 0
        """How many publications all flushes had for its groups, and what they sent of them."""
        self._window: list[Publication] = []
        self._cut_position = 0
        """The publications that this flush sends, and the sequence at which its receivers are."""
        self._rendered = 0
        """How many of them are rendered."""
        self._parts: dict[WireFormat, list[Part]] = {}
        """The publications of this flush encoded, once for each format in use."""

    @property
    def head(self) -> int:
        """The last sequence published that the lane carries."""
        if self.whole:
            return self.stream.sequence
        latest = self.stream.latest
        if not latest:
            return self.base
        known = [latest[kind].sequence for kind in self.kinds if kind in latest]
        return max(known, default=self.base)

    def hold_latest(self) -> None:
        """Assume that the groups hold the last values of all kinds."""
        if self.renderer is not None:
            self.held = self.renderer.held(self.stream.latest, self.kinds)

    def cut(self, window: list[Publication], *, stretched: bool) -> None:
        """Take the publications since the last flush into the one that begins."""
        if not self.whole:
            kinds = self.kinds
            window = [p for p in window if p.kind in kinds or p.kind is None]
        if not window:
            return
        count = len(window)
        if stretched and self.mode is Mode.LATEST:
            window = conflate(window)
        if self.groups:
            self._window = window
            self._cut_position = self.position
            self.offered = count
            self.offered_total += count
            self.delivered_total += len(window)
        if self.renderer is not None and self.held is not None:
            self._cut_held = dict(self.held)
            for publication in window:
                self.renderer.note(publication, self.held)
        self.position = window[-1].sequence
        if self.epoch != self.stream.epoch:
            self.epoch = self.stream.epoch  # the window held the gap

    def render_whole(self, publication: Publication) -> Publication:
        """Return what is sent of a publication as a whole message."""
        return publication if self.renderer is None else self.renderer.whole(publication)

    def clear(self) -> None:
        """Forget the flush that is over."""
        self._window = []
        self._rendered = 0
        self._parts.clear()
        self.offered = 0

    def render(self, portion_bytes: float = math.inf) -> int:
        """Render what the flush under way sends, until the texts reach `portion_bytes`.

        Returns their bytes; 0: nothing is left to be rendered.
        """
        if self.renderer is None:
            return 0
        window, done_bytes = self._window, 0
        while done_bytes < portion_bytes and self._rendered < len(window):
            publication = window[self._rendered]
            if not self._rendered:
                self._window = window = window.copy()  # the stream's, and so other lanes' too
            window[self._rendered] = self.renderer.render(publication, self._cut_held)
            self._rendered += 1
            done_bytes += len(publication.text)
        return done_bytes

    def parts(self, wire: WireFormat) -> list[Part]:
        """Return the messages that the flush under way sends to groups of this format."""
        parts = self._parts.get(wire)
        if parts is None:
            if self.renderer is not None:
                self.render()
            parts = self._parts[wire] = wire.parts(self._window, self._cut_position, self.stream)
        return parts


LastKnown = tuple[Lane, Publication]
"""A last known value, and the lane of the subscription that is to be sent it."""


def whole_in_parts(values: Iterable[LastKnown]) -> Parts[list[Publication]]:
    """Return what is sent of last known values, in parts: to cut an order book takes time."""
    whole: list[Publication] = []
    cut_bytes = 0
    for lane, publication in values:
        if cut_bytes >= _CUT_BYTES_PER_PART:
            cut_bytes = 0
            yield
        whole.append(lane.render_whole(publication))
        if lane.detail.depth is not None and publication.kind is Kind.ORDERBOOK:
            cut_bytes += len(publication.text)
    return whole


_NO_HISTORY: Final[deque[Publication]] = deque(maxlen=0)
"""Nothing can be added to it, so all streams without a history share it: an empty deque takes 700
bytes, a sixth of a topic that has no publications."""


class TopicStream:
    """One topic: its position, its last known values, its history and its subscriptions."""

    __slots__ = (
        "_history_length",
        "_naming",
        "_position",
        "_sent_snapshots",
        "awaited",
        "book_is_unknown",
        "epoch",
        "flushed_order",
        "former_epoch",
        "history",
        "is_personal",
        "lanes",
        "latest",
        "order",
        "renditions",
        "resumed_sequence",
        "sequence",
        "solos",
        "subscriptions",
        "topic",
        "window",
    )

    def __init__(
        self,
        topic: Topic,
        epoch: str,
        *,
        history_length: int,
        renditions: Renditions | None = None,
    ) -> None:
        self.topic = topic
        self.is_personal = topic.is_personal
        """Whether it is for one user: then it makes no groups, which would have one member each."""
        self.renditions = renditions or Renditions()
        self._naming = _naming(topic)
        self.epoch = epoch
        self.former_epoch = epoch
        """Another name of the epoch, which clients were given before its producers named it."""
        self.book_is_unknown = False
        """Whether a gap has announced that the order book is unknown until a whole one."""
        self.sequence = 0
        """The sequence of the last publication."""
        self.order = 0
        """The order of the last publication among those of all topics."""
        self.flushed_order = 0
        """The order of the last publication that a flush has sent to the groups."""
        self.latest: dict[Kind, Publication] = {}
        """The last publication of each kind."""
        self._history_length = history_length
        self.history = _NO_HISTORY
        """The last publications of the epoch, without a hole; `new_history` begins one."""
        self.window: list[Publication] = []
        """Everything published since the last flush."""
        self.lanes: dict[tuple[Mode, frozenset[Kind], Detail], Lane] = {}
        self.solos: dict[Any, Any] = {}
        """The subscriptions that no group serves, each with the outbox of its client."""
        self.subscriptions = 0
        self.awaited = 0
        """How many clients wait until it is live, to subscribe then."""
        self.resumed_sequence = 0
        """Where the stream resumed after the last gap, in the present epoch."""
        self._position = Position(epoch, 0)
        self._sent_snapshots: SentSnapshots | None = None

    @property
    def leaves_out_changes(self) -> bool:
        """Whether changes of the order book are left out, since a gap said that it is unknown."""
        return self.book_is_unknown and Kind.ORDERBOOK not in self.latest

    def lane(self, mode: Mode, kinds: frozenset[Kind], detail: Detail = WHOLE) -> Lane:
        """Return the lane for subscriptions with these options; a new one is nobody's so far."""
        if detail is not WHOLE:
            detail = detail.for_kinds(kinds)
        key = (mode, kinds, detail)
        lane = self.lanes.get(key)
        if lane is None:
            renderer = None if detail == WHOLE else Renderer(self.renditions, detail)
            lane = self.lanes[key] = Lane(self, mode, kinds, renderer)
        return lane

    def leave(self, lane: Lane) -> None:
        """Note that a subscription does not hold a lane any more.

        Each lane costs each flush, so one that nobody holds is forgotten. The last one is kept for
        clients that return.
        """
        lane.subscriptions -= 1
        if not lane.subscriptions and len(self.lanes) > 1:
            del self.lanes[lane.mode, lane.kinds, lane.detail]

    def named(self, text: bytes) -> bytes:
        """Return the JSON of a publication, with its topic if the message does not name it."""
        return b"%b%b}" % (text[:-1], self._naming) if self._naming else text

    def position_at(self, epoch: str, sequence: int) -> Position:
        """Return a position, one shared object for all subscriptions at it."""
        if self._position.sequence != sequence or self._position.epoch != epoch:
            self._position = Position(epoch, sequence)
        return self._position

    def sent_snapshots(self, kinds: frozenset[Kind], sequence: int, pings: int) -> SentSnapshots:
        """Return a note of sent values, one shared object for all subscriptions with the same."""
        sent = self._sent_snapshots
        if sent is None or sent.sequence != sequence or sent.pings != pings or sent.kinds != kinds:
            sent = self._sent_snapshots = SentSnapshots(kinds, sequence, pings)
        return sent

    def has_resumed_since(self, position: Position) -> bool:
        """Whether last known values were sent after a gap that came after a position."""
        if not self.resumed_sequence:
            return False  # nothing comes before the first publication of an epoch
        is_former = position.epoch not in (self.epoch, self.former_epoch)
        return is_former or position.sequence < self.resumed_sequence

    def last_values(self, kinds: Iterable[Kind]) -> list[Publication]:
        """Return the last known values of these kinds, oldest first; an event has none."""
        latest = self.latest
        if not latest:
            return []
        known = [latest[kind] for kind in kinds if kind in latest and not kind.is_event]
        known.sort(key=_ORDER)
        return known

    def new_history(self) -> deque[Publication]:
        """Replace an empty history by one that takes publications."""
        self.history = deque(maxlen=self._history_length)
        return self.history

    def forget_history(self) -> None:
        """Forget the publications, and the memory for them."""
        self.history = _NO_HISTORY

    def count_missed(self, since: Position) -> int | None:
        """Count the publications after a position; None if they are not known any more."""
        if since.epoch not in (self.epoch, self.former_epoch) or since.sequence > self.sequence:
            return None
        count = self.sequence - since.sequence
        return None if count > len(self.history) else count

    def missed(
        self, since: Position, kinds: Collection[Kind] = (), max_bytes: float = math.inf
    ) -> tuple[list[Publication], int] | None:
        """Return the publications of these kinds (none: all) after a position, and their size.

        None if they are not known any more, or if their texts have more than `max_bytes`. Then no
        more of them is looked at than that: there may be thousands in each of hundreds of topics.
        """
        count = self.count_missed(since)
        if count is None:
            return None
        missed: list[Publication] = []
        size_bytes = 0
        newest_first = islice(reversed(self.history), count)
        while portion := list(islice(newest_first, _MISSED_PORTION)):
            if kinds:
                portion = [publication for publication in portion if publication.kind in kinds]
            size_bytes += text_bytes(portion)
            if size_bytes > max_bytes:
                return None
            missed += portion
        missed.reverse()
        return missed, size_bytes


def _naming(topic: Topic) -> bytes:
    """Return the members that name a topic whose messages are about something else.

    A sector's messages are about its stocks: without the topic in them, a client with two sectors
    could not tell their sequences apart.
    """
    if topic.subscription_type.names_itself:
        return b""
    members = {"subscription_type": topic.subscription_type, "target": topic.target}
    return b"," + orjson.dumps(members)[1:-1]
