"""Publish for the operator: to Redis with a position, or on the bus inside the process."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
import trio

from streamer.admin.models import ApiError, Published, PublishRequest
from streamer.broker.connect import Command, RedisConnectionError, RedisReplyError
from streamer.broker.keys import position_key
from streamer.broker.requests import RedisClient
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme
from streamer.config import Settings
from streamer.hub.streams import TopicStream
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.publications import KIND_OF_TYPE
from streamer.protocol.topics import Topic
from streamer.publisher.destination import Destination
from streamer.publisher.single import SinglePublication

_PUBLISH_SECONDS: Final = 3.0
"""How long Redis may take: a publication should rather be late than refused."""

_MAX_REMEMBERED: Final = 10_000
"""Idempotency keys that a process without Redis remembers."""


class RedisPublishing:
    """Publishes as a producer with positions does, in one command for each message."""

    def __init__(self, settings: Settings, commands: RedisClient) -> None:
        self._settings = settings
        self._commands = commands
        self._sharded = has_scheme(settings.redis, CLUSTER_SCHEMES)

    async def publish(self, request: PublishRequest, text: bytes) -> Published:
        """Publish a message, given as JSON. Raises ApiError."""
        settings = self._settings
        try:
            publication = SinglePublication(
                channel_of(request),
                text,
                sharded=self._sharded,
                idempotency_key=request.idempotency_key,
                history_length=settings.history_length,
                history_seconds=settings.history_seconds,
                max_publication_bytes=settings.max_publication_bytes,
            )
        except InvalidPublicationError as error:
            raise invalid_message(error) from None
        try:
            receipt = publication.receipt(await self._execute(publication.command()))
        except RedisConnectionError as error:
            raise ApiError(503, f"Redis cannot be reached: {error}") from None
        return Published(
            topic=request.topic,
            epoch=None if receipt.position is None else receipt.position.epoch,
            sequence=None if receipt.position is None else receipt.position.sequence,
            receivers=receipt.receivers,
            duplicate=receipt.is_repeated,
        )

    async def publishers(self, topics: Sequence[str]) -> Mapping[str, str]:
        """Return the process that published last, for each topic for which that is known.

        Returns nothing if Redis does not answer in time.
        """
        commands = [("HGET", position_key(topic), "publisher") for topic in topics]
        replies: list[Any] = []
        with (
            suppress(RedisConnectionError),
            trio.move_on_after(self._settings.api_timeout_seconds),
        ):
            replies = await self._commands.execute_many(commands)
        return {
            topic: reply.decode(errors="replace")
            for topic, reply in zip(topics, replies, strict=False)
            if isinstance(reply, bytes) and reply
        }

    async def _execute(self, command: Command) -> Any:
        with trio.move_on_after(_PUBLISH_SECONDS):
            (reply,) = await self._commands.execute_many([command])
            if isinstance(reply, RedisReplyError):
                raise ApiError(503, f"Redis refused the publication: {reply}")
            return reply
        raise ApiError(
            503,
            f"Redis did not answer within {_PUBLISH_SECONDS:g} s: it may have been published, so"
            " repeat it with the same idempotency_key",
        )


class MemoryPublishing:
    """Publishes on the bus inside the process, which gives no positions."""

    def __init__(
        self,
        publish: Callable[[str, bytes], int],
        stream: Callable[[Topic], TopicStream | None],
        *,
        max_publication_bytes: int,
    ) -> None:
        """`publish` takes a channel and a text; `stream` finds the stream of a topic."""
        self._publish = publish
        self._stream = stream
        self._max_publication_bytes = max_publication_bytes
        self._remembered: OrderedDict[tuple[str, str], Published] = OrderedDict()

    async def publishers(self, topics: Sequence[str]) -> Mapping[str, str]:
        """Return nothing: the bus gives no positions, and knows no publishers."""
        del topics
        await trio.lowlevel.checkpoint()
        return {}

    async def publish(self, request: PublishRequest, text: bytes) -> Published:
        """Publish a message, given as JSON. Raises ApiError."""
        await trio.lowlevel.checkpoint()
        channel = channel_of(request)
        try:
            checked = Destination.parse(channel).check(text)
        except InvalidPublicationError as error:
            raise invalid_message(error) from None
        if len(checked) > self._max_publication_bytes:
            raise invalid_message(
                InvalidPublicationError(f"more than {self._max_publication_bytes} bytes")
            )
        key = (request.topic, request.idempotency_key or "")
        if key in self._remembered:
            return attrs.evolve(self._remembered[key], duplicate=True)
        receivers = self._publish(channel, checked)
        stream = self._stream(Topic.parse(request.topic)) if receivers else None
        published = Published(
            topic=request.topic,
            epoch=None if stream is None else stream.epoch,
            sequence=None if stream is None else stream.sequence,
            receivers=receivers,
            duplicate=False,
        )
        if request.idempotency_key is not None:
            self._remembered[key] = published
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return published


def channel_of(request: PublishRequest) -> str:
    """Return the channel for the type of a message. Raises ApiError (422)."""
    topic = Topic.parse(request.topic)
    known = {name: kind for name, kind in KIND_OF_TYPE.items() if kind in topic.kinds}
    kind = known.get(str(request.message.get("type")))
    if kind is None:
        problem = f"{topic} takes messages of type {' or '.join(known)}"
        raise ApiError(422, f"message.type: {problem}", fields={"message.type": problem})
    return topic.channel(kind)


def invalid_message(error: InvalidPublicationError) -> ApiError:
    """Return the error for a message that is not valid, with the fields that it names."""
    fields = {}
    for part in str(error).split("; "):
        path = re.fullmatch(r"\$\.?([\w.\[\]]*): (.+)", part)
        field = f"message.{path[1]}" if path is not None and path[1] else "message"
        fields[field] = part if path is None else path[2]
    message = "; ".join(f"{field}: {problem}" for field, problem in fields.items())
    return ApiError(422, message, fields=fields)
