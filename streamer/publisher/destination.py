"""Where a publication goes: its channel, what may be published there, and the stream it joins."""

from __future__ import annotations

import attrs

from streamer.protocol.codec import decode_publication, encode, utc_timestamp
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import DataMessage, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic, parse_channel

_PERSONAL_KINDS = (Kind.ALERT, Kind.NOTIFICATION)
_ABOUT_THEMSELVES = (SubscriptionType.STOCK, SubscriptionType.MARKET)


@attrs.define(eq=False)
class Stream:
    """What the publications of one topic, or of one personal channel, have in common."""

    keys: tuple[str, ...]
    """In Redis, as the script takes them."""
    position: Position | None = None
    """Of the last publication that was acknowledged."""


@attrs.frozen
class Destination:
    """A channel that data messages are published on."""

    channel: str
    kind: Kind
    topic: Topic | None
    """None: a personal channel."""

    @classmethod
    def parse(cls, channel: str) -> Destination:
        """The destination that a channel's name means.

        Raises `InvalidPublicationError` where no data message belongs on such a channel.
        """
        kind, _, user_id = channel.partition(":")
        if kind in _PERSONAL_KINDS and user_id:
            return cls(channel, Kind(kind), None)
        try:
            topic, topic_kind = parse_channel(channel)
        except ValueError as error:
            raise InvalidPublicationError(f"no channel of data messages: {error}") from None
        return cls(channel, topic_kind, topic)

    def check(self, payload: bytes | DataMessage) -> bytes:
        """The text that is published for a payload: JSON, complete but for its position.

        Raises `InvalidPublicationError` where the payload does not fit the channel.
        """
        raw = payload if isinstance(payload, bytes) else encode(payload, utc_timestamp())
        topic = self.topic
        # Sectors and watchlists tell of many stocks; a stock's or market's channel of itself alone.
        about_itself = topic is not None and topic.subscription_type in _ABOUT_THEMSELVES
        key = topic.target if topic is not None and about_itself else None
        publication = decode_publication(self.kind, key, raw)
        if publication.position is not None:
            raise InvalidPublicationError("it has a position already: epoch and sequence")
        return publication.text
