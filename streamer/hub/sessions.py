"""What is kept of a client, so that its session can be restored here or on another server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs
import cattrs
import orjson

from streamer.hub.outbox import Outbox
from streamer.protocol.codec import CONVERTER, explain
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic


@attrs.frozen
class HeldSubscription:
    """One subscription of a session, in types that JSON has."""

    topic: str
    mode: Mode
    kinds: Sequence[Kind]
    interval_seconds: float
    confirmed: Position
    """What the client is known to have received: all that had been sent before the last ping that
    it answered."""


@attrs.frozen
class SessionRecord:
    """What is needed to restore a session."""

    session_id: str
    subscriptions: Sequence[HeldSubscription]


def encode_record(record: SessionRecord) -> bytes:
    """A record as JSON."""
    return orjson.dumps(CONVERTER.unstructure(record))


def decode_record(stored: bytes) -> SessionRecord:
    """Read a record back. Raises ValueError for one that another version has written."""
    try:
        record = CONVERTER.structure(orjson.loads(stored), SessionRecord)
    except cattrs.BaseValidationError as error:
        raise ValueError("; ".join(explain(error))) from error
    for held in record.subscriptions:
        Topic.parse(held.topic)  # another version may know other types
    return record


class StoreUnavailableError(Exception):
    """Records cannot be written or read now."""


class SessionStore(Protocol):
    """Where records are kept for all servers. Both methods raise StoreUnavailableError."""

    async def save(self, records: Sequence[SessionRecord]) -> None:
        """Keep these, each for the session lifetime from now on."""

    async def load(self, session_id: str) -> SessionRecord | None:
        """The record of a session, if it is still kept."""


def record_session(outbox: Outbox) -> SessionRecord:
    """What is to be kept of a client as it stands now."""
    return SessionRecord(
        outbox.name,
        [
            HeldSubscription(
                topic=str(lane.stream.topic),
                mode=lane.mode,
                kinds=sorted(lane.kinds),
                interval_seconds=subscription.interval_seconds,
                confirmed=subscription.confirmed,
            )
            for subscription in outbox.subscriptions.values()
            for lane in (subscription.lane,)
        ],
    )
