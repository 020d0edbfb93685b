"""The destination of a publication: its channel, topic and rules."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeAlias

import attrs
import orjson

from streamer.protocol.codec import encode, utc_timestamp
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import DataMessage, Position
from streamer.protocol.publications import decode_publication
from streamer.protocol.topics import Kind, Topic, parse_channel

Payload: TypeAlias = bytes | str | Mapping[str, Any] | DataMessage
"""A data message: its JSON text, a dict (whose numbers may be Decimal), or the model."""


@attrs.define(eq=False)
class Stream:
    """The stream of one topic's publications, of all kinds, as a publisher knows it."""

    keys: tuple[str, ...]
    """Its keys in Redis."""
    position: Position | None = None
    """Position of the last publication that was acknowledged."""


@attrs.frozen
class Destination:
    """A channel that data messages are published on."""

    channel: str
    kind: Kind
    topic: Topic

    @classmethod
    def parse(cls, channel: str) -> Destination:
        """Return the destination of publications on a channel.

        Raises `InvalidPublicationError` if no data message belongs on such a channel.
        """
        try:
            topic, kind = parse_channel(channel)
        except ValueError as error:
            raise InvalidPublicationError(f"no channel of data messages: {error}") from None
        return cls(channel, kind, topic)

    def check(self, payload: Payload) -> bytes:
        """Return the text to publish for a payload: JSON, complete except for its position.

        Raises `InvalidPublicationError` if the payload does not fit the channel.
        """
        raw = payload if isinstance(payload, bytes) else _text_of(payload)
        publication = decode_publication(self.kind, self.topic.key, raw, gets_position=True)
        if publication.position is not None:
            raise InvalidPublicationError("it has a position already: epoch and sequence")
        return publication.text


def _text_of(payload: str | Mapping[str, Any] | DataMessage) -> bytes:
    if isinstance(payload, str):
        return payload.encode(errors="surrogatepass")
    if not isinstance(payload, Mapping):
        return encode(payload, utc_timestamp())
    try:
        return orjson.dumps(dict(payload), default=_number_text)
    except TypeError as error:
        raise InvalidPublicationError(f"not JSON: {error}") from None


def _number_text(value: object) -> orjson.Fragment:
    """Write a Decimal with the digits that it has: a float would change them."""
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} is no JSON value")
