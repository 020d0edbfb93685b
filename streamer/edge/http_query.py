"""The queries of HTTP requests: strict, so that a misspelt option is an error and not ignored.

Topics are given as `topics=stock:005930,market:KOSPI`: a list is split at its commas, and each
topic at its first colon. A target may contain a comma; such a topic is given whole, as `topic=`.
Both may be repeated and mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Final, TypeVar

import attrs

from streamer.edge.http_answers import bad_request
from streamer.edge.http_request import HttpRequest
from streamer.hub.renditions import WHOLE, Detail
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.protocol.errors import ErrorCode
from streamer.protocol.messages import MAX_RATE, MAX_SEQUENCE, MIN_RATE, Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType, Topic, target_problem
from streamer.wire.cursor import decode_cursor

T = TypeVar("T")

MAX_STREAM_TOPICS: Final = 100
"""Topics of one request, whatever the settings allow: a cursor names all of them."""

MAX_HISTORY_MESSAGES: Final = 1000
"""Messages of one answer to `history`."""


@attrs.frozen
class StreamQuery:
    """The topics of a stream and its options."""

    topics: tuple[Topic, ...]
    mode: Mode = Mode.LATEST
    kinds: frozenset[Kind] = frozenset()
    """Empty: all."""
    interval_seconds: float = 0.0
    detail: Detail = WHOLE
    cursor: str = ""
    """Where to resume; empty: at the present."""

    def wants(self, allowed: Iterable[Topic], personal: Topic | None) -> list[Want]:
        """Return what a client wants that may have these of the topics, and its personal one."""
        topics = list(allowed)
        if personal is not None and personal not in topics:
            topics.append(personal)
        since = _positions(self.cursor, topics) if self.cursor else {}
        return [
            Want(
                topic,
                SubscriptionOptions(
                    self.mode,
                    frozenset() if topic == personal else self.kinds & frozenset(topic.kinds),
                    self.interval_seconds,
                    detail=WHOLE if topic == personal else self.detail,
                ),
                since.get(topic),
            )
            for topic in topics
        ]


@attrs.frozen
class HistoryQuery:
    """A position in a topic, and how many of the messages after it are wanted."""

    topic: Topic
    since: Position
    limit: int = MAX_HISTORY_MESSAGES


def read_stream_query(
    request: HttpRequest, *, max_topics: int, max_book_levels: int
) -> StreamQuery:
    """Read the query of `/v1/stream`. Raises HttpError (400)."""
    lists, options = _split(
        request,
        {"topics", "topic"},
        {"mode", "kinds", "max_rate", "delta", "depth", "last_event_id"},
    )
    topics = _topics(lists, max_topics)
    mode = _option(options, "mode", _mode, Mode.LATEST)
    kinds: frozenset[Kind] = _option(options, "kinds", _kinds, frozenset())
    interval_seconds = _option(options, "max_rate", _interval_seconds, 0.0)
    if interval_seconds and mode is Mode.ALL:
        raise bad_request("max_rate merges messages, which mode all forbids")
    delta = _option(options, "delta", _boolean, default=False)
    depth = _option(options, "depth", partial(_integer, maximum=max_book_levels), None)
    without = [str(topic) for topic in topics if kinds and not kinds & frozenset(topic.kinds)]
    if without:
        raise bad_request(f"kinds leaves nothing of {without[0]}", details={"topics": without})
    # A browser repeats the query when it reconnects, and adds the header, which is newer.
    cursor = request.last_event_id or options.get("last_event_id", "")
    if cursor:
        _positions(cursor, topics)
    return StreamQuery(topics, mode, kinds, interval_seconds, Detail(delta, depth), cursor)


def read_snapshot_query(request: HttpRequest, *, max_topics: int) -> tuple[Topic, ...]:
    """Read the query of `/v1/snapshot`. Raises HttpError (400)."""
    lists, _ = _split(request, {"topics", "topic"}, set())
    return _topics(lists, max_topics)


def read_history_query(request: HttpRequest) -> HistoryQuery:
    """Read the query of `/v1/history`. Raises HttpError (400)."""
    lists, options = _split(request, {"topic"}, {"epoch", "sequence", "limit"})
    topics = _topics(lists, 1)
    missing = [name for name in ("epoch", "sequence") if name not in options]
    if missing:
        raise bad_request(f"{' and '.join(missing)} of the position is missing")
    sequence = _option(options, "sequence", partial(_integer, minimum=0), 0)
    limit = _option(
        options, "limit", partial(_integer, maximum=MAX_HISTORY_MESSAGES), MAX_HISTORY_MESSAGES
    )
    try:
        since = Position(options["epoch"], sequence)
    except ValueError as error:
        raise bad_request(str(error)) from None
    return HistoryQuery(topics[0], since, limit)


def _split(
    request: HttpRequest, lists: set[str], options: set[str]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Split the parameters into those that may be repeated, and the others."""
    repeated: list[tuple[str, str]] = []
    single: dict[str, str] = {}
    for name, value in request.parameters:
        if name in lists:
            repeated.append((name, value))
        elif name in options:
            if name in single:
                raise bad_request(f"{name} is given twice")
            single[name] = value
        else:
            known = ", ".join(sorted(lists | options | {"token"}))
            raise bad_request(f"a parameter is unknown here, where {known} are known")
    return repeated, single


def _option(options: Mapping[str, str], name: str, parse: Callable[[str], T], default: T) -> T:
    if name not in options:
        return default
    try:
        return parse(options[name])
    except ValueError as error:
        raise bad_request(f"{name}: {error}", details={"parameter": name}) from None


def _mode(text: str) -> Mode:
    if text not in tuple(Mode):
        raise ValueError(f"it is one of {', '.join(Mode)}")
    return Mode(text)


def _boolean(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("it is true or false")
    return text == "true"


def _integer(text: str, *, minimum: int = 1, maximum: int = MAX_SEQUENCE - 1) -> int:
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(maximum))
    if not is_number or not minimum <= int(text) <= maximum:
        raise ValueError(f"it is a number from {minimum} to {maximum}")
    return int(text)


def _kinds(text: str) -> frozenset[Kind]:
    names = text.split(",")
    if not set(names) <= set(Kind):
        raise ValueError(f"they are of {', '.join(Kind)}, with commas between them")
    return frozenset(map(Kind, names))


def _interval_seconds(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"it is a number from {MIN_RATE:g} to {MAX_RATE:g}")
    return 1.0 / rate


def _topics(parameters: Iterable[tuple[str, str]], max_topics: int) -> tuple[Topic, ...]:
    texts: dict[str, None] = {}
    for name, value in parameters:
        texts |= dict.fromkeys(value.split(",") if name == "topics" else [value])
    if not texts:
        raise bad_request("topics are missing: topics=TYPE:TARGET,TYPE:TARGET")
    if len(texts) > max_topics:
        raise bad_request(
            f"{len(texts)} topics in one request, where {max_topics} are allowed",
            code=ErrorCode.TOO_MANY_TARGETS,
            details={
                "rejected": [
                    {
                        "topic": text,
                        "code": ErrorCode.TOO_MANY_TARGETS,
                        "message": f"a request has at most {max_topics} topics",
                    }
                    for text in islice(texts, max_topics, max_topics + MAX_STREAM_TOPICS)
                ]
            },
        )
    topics: dict[Topic, None] = {}
    rejected: list[dict[str, str]] = []
    for text in texts:
        subscription_type, _, target = text.partition(":")
        problem = target_problem(target)
        if subscription_type not in tuple(SubscriptionType):
            problem = f"a topic is TYPE:TARGET with a type of {', '.join(SubscriptionType)}"
        if problem is None:
            topics[Topic(SubscriptionType(subscription_type), target)] = None
        else:
            rejected.append({"topic": text, "code": ErrorCode.INVALID_TARGET, "message": problem})
    if rejected:
        raise bad_request(
            f"{len(rejected)} of the topics are invalid",
            code=ErrorCode.INVALID_TARGET,
            details={"rejected": rejected},
        )
    return tuple(topics)


def _positions(cursor: str, topics: Iterable[Topic]) -> dict[Topic, Position]:
    try:
        return decode_cursor(cursor, list(topics))
    except ValueError as error:
        raise bad_request(f"Last-Event-ID or last_event_id: {error}") from None
