"""The commands that publish, and the replies to them: by a script with positions, or plain."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from importlib.resources import files
from typing import Any, Final, Protocol

from streamer.broker.connect import Command, unexpected_reply
from streamer.broker.keys import history_key, position_key, published_key
from streamer.protocol.messages import Position
from streamer.publisher.destination import Destination, Stream
from streamer.publisher.receipts import Receipt

_SCRIPT: Final = files(__package__).joinpath("publish.lua").read_bytes()
_SCRIPT_SHA1: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()

WINDOW: Final = 128
"""Publications that may be sent and unanswered: enough to keep Redis busy despite latency."""

_POSITION_BYTES: Final = 128
"""More than epoch and sequence add to the text of a publication."""


class Numbered(Protocol):
    """A publication as a publisher sends it."""

    @property
    def number(self) -> int:
        """Its number among all publications of the publisher, over all topics."""

    @property
    def destination(self) -> Destination:
        """Its destination."""

    @property
    def stream(self) -> Stream:
        """The stream of its topic."""

    @property
    def text(self) -> bytes:
        """Its text, without a position."""


class PublishCommands(Protocol):
    """One way to publish. Commands are made and answered in the same order."""

    retries: bool
    """Whether a publication may be sent again after its answer was lost."""
    added_bytes: int
    """Most bytes that are added to the text of a publication."""

    def keys(self, topic: str) -> tuple[str, ...]:
        """Return the keys in Redis of a topic's stream, once for each stream."""

    def begin(self) -> None:
        """Start on a new connection."""

    def command(self, publication: Numbered, *, oldest: int) -> Command:
        """Make the command; `oldest` is the number of the oldest one without an answer."""

    def receipt(self, publication: Numbered, reply: Any) -> Receipt:
        """Read the reply, no error, to its command. Raises RedisConnectionError."""


class PlainCommands:
    """PUBLISH, or SPUBLISH in a Cluster: no position, no history and no script.

    Redis cannot tell a retry from a new publication, so nothing is sent twice.
    """

    retries = False
    added_bytes = 0

    def __init__(self, *, sharded: bool) -> None:
        self._name = "SPUBLISH" if sharded else "PUBLISH"

    def keys(self, topic: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return no keys: Redis stores nothing for a topic."""
        return ()

    def begin(self) -> None:
        """Start on a new connection."""

    def command(self, publication: Numbered, *, oldest: int) -> Command:  # noqa: ARG002
        """Make the command."""
        return self._name, publication.destination.channel, publication.text

    def receipt(self, publication: Numbered, reply: Any) -> Receipt:  # noqa: ARG002
        """Read the reply to its command. Raises RedisConnectionError."""
        if not isinstance(reply, int):
            raise unexpected_reply(reply)
        return Receipt(None, reply)


class ScriptCommands:
    """One call of `publish.lua` for each publication, which gives it the topic's next position.

    Redis keeps records of a publisher's last publications, so a retry gets the receipt of the first
    attempt.
    """

    retries = True
    added_bytes = _POSITION_BYTES

    def __init__(
        self,
        publisher_id: str,
        *,
        history_length: int,
        history_ms: int,
        record_seconds: int,
    ) -> None:
        """`record_seconds` is how long Redis keeps the records."""
        self._publisher_id = publisher_id
        self._history = (history_length, history_ms)
        self._record_seconds = record_seconds
        self._publisher_name = f"{socket.gethostname()}:{os.getpid()}"
        self._script_sent = False
        self._candidate_epoch = ""
        self._last_sent: dict[Stream, int] = {}
        """The number of the last publication that this connection was sent, while unanswered."""

    def keys(self, topic: str) -> tuple[str, ...]:
        """Return the keys in Redis of a topic's stream, as the script takes them."""
        return published_key(topic, self._publisher_id), position_key(topic), history_key(topic)

    def begin(self) -> None:
        """Start on a new connection."""
        self._script_sent = False
        self._candidate_epoch = secrets.token_hex(8)
        self._last_sent.clear()

    def command(self, publication: Numbered, *, oldest: int) -> Command:
        """Make the command; `oldest` is the number of the oldest one without an answer."""
        number, stream = publication.number, publication.stream
        # Only unanswered ones must precede it: Redis may have lost an answered one since.
        prior = self._last_sent.get(stream, 0)
        prior = prior if prior >= oldest else 0
        self._last_sent[stream] = number
        # The first command loads the script.
        script = ("EVALSHA", _SCRIPT_SHA1) if self._script_sent else ("EVAL", _SCRIPT)
        self._script_sent = True
        known = stream.position
        return (
            *script,
            len(stream.keys),
            *stream.keys,
            number,
            number % WINDOW,
            prior,
            self._record_seconds,
            publication.destination.channel,
            publication.text[:-1],
            publication.destination.kind,
            # Unique, even if Redis loses everything twice during one connection.
            f"{self._candidate_epoch}.{number}",
            *((known.epoch, known.sequence) if known else ("", 0)),
            *self._history,
            self._publisher_name,
        )

    def receipt(self, publication: Numbered, reply: Any) -> Receipt:
        """Read the reply to its command. Raises RedisConnectionError."""
        stream = publication.stream
        if self._last_sent.get(stream) == publication.number:
            del self._last_sent[stream]  # not needed any more, and there may be many topics
        try:
            epoch, sequence, receivers, *repeated = reply
            stream.position = Position(epoch.decode(), int(sequence))
            return Receipt(stream.position, int(receivers), is_repeated=bool(repeated))
        except (AttributeError, TypeError, ValueError):
            raise unexpected_reply(reply) from None
