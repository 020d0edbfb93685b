"""Records of sessions, from which the subscriptions of a client are restored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import cattrs
import orjson

from streamer.hub.outbox import Outbox
from streamer.hub.renditions import WHOLE, Detail
from streamer.hub.streams import SentSnapshots
from streamer.hub.subscription import Subscription
from streamer.protocol.codec import CONVERTER, explain
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic


@attrs.frozen
class HeldSubscription:
    """One subscription of a session."""

    topic: Topic
    mode: Mode
    kinds: frozenset[Kind]
    interval_seconds: float
    """The least time between two messages of a kind; 0: no limit."""
    confirmed: Position
    """The position that the client has confirmed: that of the last message sent before the last
    ping that it answered."""
    detail: Detail = WHOLE
    unconfirmed: SentSnapshots | None = None
    """Last known values that the client may not have received, although it was sent them."""


@attrs.frozen
class SessionRecord:
    """The subscriptions of a session."""

    session_id: str
    subscriptions: Sequence[HeldSubscription]
    ended: bool = False
    """Whether the connection had ended: a record of a live one may be out of date."""
    user_id: str | None = None
    """The user to whom the session belongs; None for a session of an anonymous client."""
    max_bandwidth: float = 0.0
    """Bytes per second that the client asked to be sent at most; 0: no limit."""

    def may_be_restored_by(self, user_id: str | None) -> bool:
        """Whether a client may restore the session, whose id it knows.

        A user's session is restored by that user only. An anonymous client's session is restored by
        any client, also by one that has since presented a token.
        """
        return self.user_id is None or self.user_id == user_id


@attrs.frozen
class _StoredGroup:
    """Subscriptions that differ in target and position only."""

    type: SubscriptionType
    mode: Mode
    kinds: Sequence[Kind]
    interval_seconds: float = attrs.field()
    positions: Mapping[str, Mapping[str, int]]
    """The sequences by target, in each epoch."""
    delta: bool = False
    depth: int | None = None
    snapshot_kinds: Sequence[Kind] = ()
    """Kinds whose last known values the client has not confirmed."""
    snapshot_offset: int = 0
    """None of these values is newer than this much after the confirmed position."""

    @interval_seconds.validator
    def _check_interval(self, _attribute: object, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"an interval of {value} s")


@attrs.frozen
class _StoredRecord:
    session_id: str
    groups: Sequence[_StoredGroup]
    ended: bool
    user_id: str | None = None
    max_bandwidth: float = attrs.field(default=0.0)

    @max_bandwidth.validator
    def _check_bandwidth(self, _attribute: object, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"a bandwidth of {value} bytes/s")


_Options = tuple[SubscriptionType, Mode, frozenset[Kind], float]
"""The fields that the subscriptions of a `_StoredGroup` share, beside those of `Detail`."""

_Snapshots = tuple[frozenset[Kind], int] | None
"""The fields of a `_StoredGroup` about values that the client has not confirmed."""


def encode_session(outbox: Outbox, *, ended: bool = False) -> bytes:
    """Encode the record of a client's session as it is now, compactly.

    Subscriptions with the same options share them: most of a client's do.
    """
    groups: dict[tuple[_Options, Detail, _Snapshots], dict[str, dict[str, int]]] = {}
    for held in outbox.subscriptions.values():
        lane = held.lane
        stream = lane.stream
        topic, at = stream.topic, held.confirmed
        sent = _sent_snapshots(held) if stream.resumed_sequence else held.unconfirmed
        options = (topic.subscription_type, lane.mode, lane.kinds, held.interval_seconds)
        snapshots = None if sent is None else (sent.kinds, sent.sequence - at.sequence)
        key = (options, lane.detail, snapshots)
        positions = groups.get(key)
        if positions is None:
            positions = groups[key] = {}
        sequences = positions.get(at.epoch)
        if sequences is None:
            sequences = positions[at.epoch] = {}
        sequences[topic.target] = at.sequence
    record: dict[str, object] = {
        "session_id": outbox.name,
        "groups": [_stored_group(*key, positions) for key, positions in groups.items()],
        "ended": ended,
        "max_bandwidth": outbox.max_bandwidth,
    }
    if outbox.user_id is not None:
        record["user_id"] = outbox.user_id
    # The buffer of orjson, up to 15 times as large and 4 KB at least, lives as long as its bytes.
    return bytes(memoryview(orjson.dumps(record)))


def _stored_group(
    options: _Options,
    detail: Detail,
    snapshots: _Snapshots,
    positions: Mapping[str, Mapping[str, int]],
) -> dict[str, object]:
    subscription_type, mode, kinds, interval_seconds = options
    group: dict[str, object] = {
        "type": subscription_type,
        "mode": mode,
        "kinds": sorted(kinds),
        "interval_seconds": interval_seconds,
        "positions": positions,
        "delta": detail.delta,
        "depth": detail.depth,
    }
    if snapshots is not None:
        group["snapshot_kinds"], group["snapshot_offset"] = sorted(snapshots[0]), snapshots[1]
    return group


def decode_record(text: bytes) -> SessionRecord:
    """Decode a record. Raises ValueError for one that this version cannot have written."""
    try:
        stored = CONVERTER.structure(orjson.loads(text), _StoredRecord)
    except cattrs.BaseValidationError as error:
        raise ValueError("; ".join(explain(error))) from error
    subscriptions = [
        HeldSubscription(
            topic=Topic(group.type, target),
            mode=group.mode,
            kinds=frozenset(group.kinds),
            interval_seconds=group.interval_seconds,
            detail=Detail(group.delta, group.depth),
            confirmed=Position(epoch, sequence),
            unconfirmed=_unconfirmed(group, sequence),
        )
        for group in stored.groups
        for epoch, sequences in group.positions.items()
        for target, sequence in sequences.items()
    ]
    return SessionRecord(
        stored.session_id, subscriptions, stored.ended, stored.user_id, stored.max_bandwidth
    )


def _unconfirmed(group: _StoredGroup, confirmed_sequence: int) -> SentSnapshots | None:
    if not group.snapshot_kinds:
        return None
    kinds = frozenset(group.snapshot_kinds)
    return SentSnapshots(kinds, confirmed_sequence + group.snapshot_offset)


def _sent_snapshots(subscription: Subscription) -> SentSnapshots | None:
    """Return the last known values that were sent since the confirmed position."""
    sent, lane = subscription.unconfirmed, subscription.lane
    if not lane.stream.has_resumed_since(subscription.confirmed):
        return sent
    sequence = lane.stream.resumed_sequence
    return SentSnapshots(lane.kinds, max(sequence, sent.sequence) if sent else sequence)


def record_session(outbox: Outbox, *, ended: bool = False) -> SessionRecord:
    """Make a record of a client's session as it is now."""
    return SessionRecord(
        outbox.name,
        [
            HeldSubscription(
                topic=lane.stream.topic,
                mode=lane.mode,
                kinds=lane.kinds,
                interval_seconds=subscription.interval_seconds,
                detail=lane.detail,
                confirmed=subscription.confirmed,
                unconfirmed=_sent_snapshots(subscription),
            )
            for subscription in outbox.subscriptions.values()
            for lane in (subscription.lane,)
        ],
        ended,
        outbox.user_id,
        outbox.max_bandwidth,
    )
