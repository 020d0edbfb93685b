"""Publish one message at a position, for a caller that has requests to Redis of its own.

A `Publisher` keeps a connection and an order among its publications. Here each publication is by
itself, and whoever repeats it with the same idempotency key gets the receipt of the first.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, Final

import attrs

from streamer.broker.connect import Command
from streamer.broker.keys import sharded_channel
from streamer.protocol.errors import InvalidPublicationError
from streamer.publisher.commands import ScriptCommands
from streamer.publisher.destination import Destination, Stream
from streamer.publisher.receipts import Receipt

_RETRY_SECONDS: Final = 600
"""How long Redis recognizes a retry by this process of a publication without a key."""

IDEMPOTENCY_SECONDS: Final = 86_400
"""How long Redis recognizes a publication by its idempotency key."""


@attrs.frozen
class _Only:
    """A publication that is the only one of its publisher."""

    destination: Destination
    stream: Stream
    text: bytes
    number: int = 1


class SinglePublication:
    """One publication: the command that publishes it, and the receipt in Redis' reply to that.

    The command may be carried out twice: the second time, Redis only repeats the receipt.
    """

    def __init__(
        self,
        channel: str,
        payload: bytes,
        *,
        sharded: bool,
        idempotency_key: str | None,
        history_length: int,
        history_seconds: float,
        max_publication_bytes: int,
    ) -> None:
        """Check the payload (JSON) of a channel. Raises InvalidPublicationError."""
        publisher_id = secrets.token_hex(8)
        if idempotency_key is not None:
            digest = hashlib.sha256(idempotency_key.encode(errors="surrogatepass")).hexdigest()
            publisher_id = f"key-{digest[:32]}"
        self._commands = ScriptCommands(
            publisher_id,
            history_length=history_length,
            history_ms=max(1, round(history_seconds * 1000)),
            record_seconds=_RETRY_SECONDS if idempotency_key is None else IDEMPOTENCY_SECONDS,
        )
        destination = Destination.parse(channel)
        text = destination.check(payload)
        room_bytes = max_publication_bytes - self._commands.added_bytes
        if len(text) > room_bytes:
            raise InvalidPublicationError(
                f"{len(text)} bytes, where servers take {room_bytes} without a position"
            )
        stream = Stream(self._commands.keys(str(destination.topic)))
        if sharded:
            destination = attrs.evolve(destination, channel=sharded_channel(channel))
        self._publication = _Only(destination, stream, text)

    def command(self) -> Command:
        """Return the command, which includes the script."""
        self._commands.begin()
        return self._commands.command(self._publication, oldest=1)

    def receipt(self, reply: Any) -> Receipt:
        """Read the reply, no error, to the command. Raises RedisConnectionError."""
        return self._commands.receipt(self._publication, reply)
