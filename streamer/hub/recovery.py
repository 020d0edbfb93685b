"""Planning of recoveries: the messages that a client is sent before the live flow of a topic.

A client that names a position is sent the publications that it has missed, or a gap if they are not
known any more; a client that names none is sent the last known values. The plan is made in the same
synchronous step as the subscriptions: no publication comes between the answer and the live flow.
Missed publications are held in the outbox from then on, so they are sent as the answer promises
even if the topic's history drops them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import attrs

from streamer.hub.hub import Hub, Replay
from streamer.hub.outbox import Outbox
from streamer.hub.parts import completed
from streamer.hub.publication import Publication
from streamer.hub.streams import LastKnown, whole_in_parts
from streamer.hub.subscription import Subscription, Want
from streamer.protocol.messages import GapReason, Position
from streamer.protocol.topics import Kind, Topic


@attrs.define
class RecoveryPlan:
    """The contents of the answer to a client, and the messages right after it."""

    positions: dict[Topic, Position] = attrs.field(factory=dict)
    """For each topic, the position that its next message follows."""
    missed_messages: int = 0
    """How many missed messages the client will be sent."""
    recovered: bool = True
    """Whether these are all that it has missed."""
    last_values: list[LastKnown] = attrs.field(factory=list)
    """The last known values that are sent right after the answer, as they were published."""

    @property
    def snapshots(self) -> list[Publication]:
        """The same as they are sent, made at once."""
        return completed(whole_in_parts(self.last_values))


def subscribe(
    hub: Hub,
    outbox: Outbox,
    wants: Sequence[Want],
    *,
    max_replay_bytes: int,
    stays: bool = True,
) -> RecoveryPlan:
    """Subscribe a client, and begin the recovery of its missed messages.

    The caller sends the answer and the snapshots, and then calls `FanOut.start_replays`: missed
    messages and gaps are in the outbox by now. At most `max_replay_bytes` of them are held for the
    client; the rest becomes a gap. `stays`: whether the client is subscribed from then on.
    """
    held = {subscription.lane.stream.topic for subscription in outbox.subscriptions.values()}
    room_bytes = max_replay_bytes - outbox.backlog.replay_bytes
    replays = _plan(hub, wants, held, room_bytes, stays=stays)
    subscriptions = hub.subscribe(outbox, wants, replays)
    recovery = RecoveryPlan()
    for want, (subscription, kinds) in zip(wants, subscriptions, strict=True):
        topic = want.topic
        if replays and topic in replays:
            recovery.positions[topic], missed, _ = replays[topic]
            recovery.missed_messages += len(missed)
            if want.unconfirmed is not None:
                recovery.last_values += _unconfirmed(hub, outbox, subscription, want)
            hub.recoveries["complete"] += 1
            continue
        if want.since is not None and topic not in held:
            recovery.recovered = False
            hub.recoveries["gap"] += 1
            reason, position = _hole(hub, subscription, want.since, want)
            hub.announce_hole(outbox, subscription, want.since, reason, position)
        elif want.options.snapshot and subscription.lane.stream.latest:
            known = hub.snapshot(subscription, kinds)
            recovery.last_values += [(subscription.lane, value) for value in known]
            if known:
                sequence = hub.position(subscription).sequence
                outbox.note_snapshots(subscription, kinds, sequence)
        recovery.positions[topic] = hub.position(subscription)
    return recovery


def _unconfirmed(
    hub: Hub, outbox: Outbox, subscription: Subscription, want: Want
) -> list[LastKnown]:
    """Return the last known values that the client may lack, of those before its position.

    They were sent on the former connection, and lost if it ended before they arrived. Those that
    have changed since are among the missed messages.
    """
    sent, since = want.unconfirmed, want.since
    assert sent is not None
    assert since is not None  # there is a replay
    lane = subscription.lane
    kinds = sent.kinds & lane.kinds
    sequence = min(sent.sequence, since.sequence)
    known = [last for last in hub.snapshot(subscription, kinds) if last.sequence <= sequence]
    if known:
        outbox.note_snapshots(subscription, kinds, sequence)
    return [(lane, value) for value in known]


def _plan(
    hub: Hub, wants: Sequence[Want], held: set[Topic], room_bytes: int, *, stays: bool
) -> Mapping[Topic, Replay]:
    """Find the publications to replay for each topic; a topic with a hole has no entry.

    A topic that the client holds already has no hole: its subscription continues unchanged.
    """
    replays: dict[Topic, Replay] = {}
    for want in wants:
        if want.since is None or want.topic in held:
            continue
        found = hub.missed(want.topic, want.since, want.options.kinds, room_bytes)
        if found is None or (stays and _lacks_book(hub, want)):
            continue
        missed, size_bytes = found
        room_bytes -= size_bytes
        replays[want.topic] = want.since, missed, size_bytes
    return replays


def _hole(
    hub: Hub, subscription: Subscription, since: Position, want: Want
) -> tuple[GapReason, Position]:
    """Return the reason for a hole after `since`, and the position, never earlier, that resumes."""
    at = hub.position(subscription)
    same_epoch = since.epoch == at.epoch
    if same_epoch and since.sequence <= hub.stream(want.topic).sequence and _lacks_book(hub, want):
        # It may be later than all publications of the kinds that the client asks for.
        return GapReason.BOOK_UNKNOWN, max(at, since, key=attrgetter("sequence"))
    # Another server was ahead of this one, unless the epoch is this server's own.
    ahead = same_epoch and since.sequence > at.sequence and not hub.publishing.owns_epoch(at.epoch)
    if ahead:
        return GapReason.SOURCE_UNAVAILABLE, since
    if want.unavailable:
        return GapReason.SOURCE_UNAVAILABLE, at
    return GapReason.HISTORY_EXPIRED if same_epoch else GapReason.SOURCE_RECONNECTED, at


def _lacks_book(hub: Hub, want: Want) -> bool:
    """Whether a client that has the order book would not notice that its changes are left out.

    Those who were subscribed before know it from a gap.
    """
    kinds = want.options.kinds
    return hub.stream(want.topic).leaves_out_changes and (not kinds or Kind.ORDERBOOK in kinds)
