"""Snapshots and histories over HTTP: what a subscription would be sent, without the subscription.

Each is a subscription that ends in the step in which it begins, so that positions, permissions of
Redis and recoveries are those of all clients, and no publication can come in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
import orjson

from streamer.edge.http_query import HistoryQuery
from streamer.edge.requests import Services, continued, prepare
from streamer.hub.outbox import NO_OWNER, Outbox
from streamer.hub.publication import Publication
from streamer.hub.recovery import RecoveryPlan, subscribe
from streamer.hub.subscription import Want
from streamer.protocol.errors import ERROR_MEANINGS, ErrorCode
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic

MAX_BODY_BYTES: Final = 1024 * 1024
"""The most bytes of messages in an answer: four of the largest, with the default settings."""


class HttpReads:
    """Reads topics for one client, which is not subscribed to them."""

    def __init__(self, services: Services, address: str) -> None:
        """`address` is the client's, as limits count it.

        Topics that are kept for a while after a read count as those of one client of that address.
        """
        self._services = services
        self._name = f"http {address}"

    async def snapshot(self, topics: Sequence[Topic], forbidden: Iterable[Topic]) -> bytes:
        """Return the JSON of the positions and last known values of topics.

        By topic: an object with `position` and `messages`, or with `error` for a topic that is
        forbidden or for which the answer has no room.
        """
        answer: dict[str, Any] = {str(topic): _error(ErrorCode.FORBIDDEN) for topic in forbidden}
        wants = [Want(topic) for topic in topics]
        outbox = self._outbox()
        plan = await self._enter(outbox, wants)
        try:
            left = MAX_BODY_BYTES
            for topic in topics:
                if topic not in plan.positions:
                    answer[str(topic)] = _error(ErrorCode.FORBIDDEN)
                    continue
                subscription = outbox.subscriptions[self._services.hub.stream(topic)]
                known = self._services.hub.snapshot(subscription, topic.kinds)
                texts = [publication.snapshot_text for publication in known]
                left -= sum(map(len, texts))
                answer[str(topic)] = (
                    _read(plan.positions[topic], texts)
                    if left >= 0
                    else _error(
                        ErrorCode.MESSAGE_TOO_LARGE,
                        f"an answer holds {MAX_BODY_BYTES} bytes: ask for fewer topics",
                    )
                )
        finally:
            self._services.hub.remove(outbox)
        return orjson.dumps(answer)

    async def history(self, query: HistoryQuery) -> bytes | None:
        """Return the JSON of what followed a position, or None if the topic is forbidden.

        `messages` are those that a client that resumes at the position is sent: the missed ones, or
        a `gap` and the last known values; `recovered` says which. `position` is that of the last
        one, from which to go on if `more` is true. A gap and the values after it are never divided:
        nobody who goes on from the gap would be sent these.
        """
        want = Want(query.topic, since=query.since)
        outbox = self._outbox()
        plan = await self._enter(outbox, [want])
        try:
            if query.topic not in plan.positions:
                return None
            (subscription,) = outbox.subscriptions.values()
            position = plan.positions[query.topic]
            backlog = outbox.backlog
            limit: int | None = query.limit
            portion_bytes = MAX_BODY_BYTES
            if not plan.recovered:
                limit, portion_bytes = None, backlog.replay_bytes
            missed = [
                publication
                for _, portion, _ in backlog.take_replay(portion_bytes)
                for publication in portion
            ]
            taken = missed[:limit]
            texts = _texts(taken, position.sequence)
            more = len(taken) < len(missed) or backlog.replaying
            if taken:
                position = Position(subscription.lane.stream.epoch, taken[-1].sequence)
        finally:
            self._services.hub.remove(outbox)
        return orjson.dumps(
            {"topic": str(query.topic), "recovered": plan.recovered, "more": more}
            | _read(position, texts)
        )

    def _outbox(self) -> Outbox:
        settings = self._services.settings
        return Outbox(
            self._name,
            -1,
            NO_OWNER,
            self._services.events,
            max_queued_bytes=settings.max_outbound_bytes,
            max_replay_bytes=settings.max_replay_bytes,
        )

    async def _enter(self, outbox: Outbox, wants: Sequence[Want]) -> RecoveryPlan:
        """Subscribe an outbox to the topics that may be had. The caller removes it at once."""
        hub, source = self._services.hub, self._services.source
        topics = [want.topic for want in wants]
        since = {want.topic: want.since for want in wants if want.since is not None}
        recoveries = await prepare(self._services, topics, since)
        forbidden = source.forbidden(topics)
        admitted = [continued(want, recoveries) for want in wants if want.topic not in forbidden]
        hub.add(outbox)
        return subscribe(
            hub,
            outbox,
            admitted,
            max_replay_bytes=self._services.settings.max_replay_bytes,
            stays=False,
        )


def _texts(publications: Iterable[Publication], position: int) -> list[bytes]:
    texts = []
    for publication in publications:
        texts.append(publication.text_following(position))
        position = publication.sequence
    return texts


def _read(position: Position, texts: Iterable[bytes]) -> dict[str, Any]:
    return {"position": attrs.asdict(position), "messages": list(map(orjson.Fragment, texts))}


def _error(code: ErrorCode, message: str | None = None) -> Mapping[str, Any]:
    return {"error": {"code": code, "message": message or ERROR_MEANINGS[code]}}
