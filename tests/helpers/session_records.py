"""Records of sessions that no client of the test has had."""

from __future__ import annotations

from streamer.hub.bandwidth import Bandwidth
from streamer.hub.outbox import Outbox
from streamer.hub.sessions import SessionRecord, encode_session
from streamer.hub.streams import TopicStream
from streamer.hub.subscription import Subscription
from streamer.wire.json import WebSocketJson


class _Nobody:
    """The owner of an outbox that nothing is written to."""

    def on_blocked(self) -> None:
        """Never called."""

    on_broken = on_overflow = on_blocked


def encoded(record: SessionRecord) -> bytes:
    """Encode the session of a client that has what the record says."""
    wire = WebSocketJson(lambda: "2026-01-02T03:04:05.678Z")
    outbox = Outbox(record.session_id, -1, _Nobody(), wire, max_queued_bytes=0)
    outbox.user_id = record.user_id
    if record.max_bandwidth:
        outbox.bandwidth = Bandwidth(record.max_bandwidth)
    for held in record.subscriptions:
        stream = TopicStream(held.topic, held.confirmed.epoch, history_length=0)
        subscription = Subscription(stream.lane(held.mode, held.kinds, held.detail))
        subscription.interval_seconds = held.interval_seconds
        subscription.confirmed = held.confirmed
        subscription.unconfirmed = held.unconfirmed
        outbox.subscriptions[stream] = subscription
    return encode_session(outbox, ended=record.ended)
