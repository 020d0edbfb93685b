"""The requests and answers of the operator's API, from which its OpenAPI document is made too.

The bounds of a field are written once, as keywords of JSON Schema: they are checked here, and shown
in the document.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

import attrs
import cattrs

from streamer.protocol.codec import CONVERTER, explain
from streamer.protocol.topics import SubscriptionType, Topic

MAX_PAGE: Final = 1000
"""The most rows of one answer: some hundred kilobytes from each process."""

MAX_RETRY_MS: Final = 3_600_000
"""An hour: clients take a longer delay for a mistake."""

MAX_SHOWN_TOPICS: Final = 20
"""Topics of a connection that a list shows; it has the count of all."""

T = TypeVar("T")


class ApiError(Exception):
    """A request that is not carried out, or not everywhere: the HTTP status, and the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        fields: Mapping[str, str] | None = None,
        done: Mapping[str, Any] | None = None,
    ) -> None:
        """`fields` says what is wrong with each wrong field; `done` has what was done anyway."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields
        self.done = done

    def to_json(self) -> dict[str, Any]:
        """Return the body of the answer."""
        body: dict[str, Any] = {"error": self.message}
        if self.fields is not None:
            body["fields"] = dict(self.fields)
        return body | dict(self.done or {})


_CHECKS: Final[Mapping[str, Any]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "minLength": lambda value, bound: len(value) >= bound,
    "maxLength": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, pattern: re.fullmatch(pattern, value) is not None,
}
_WORDS: Final[Mapping[str, str]] = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters long",
    "maxLength": "at most {} characters long",
    "pattern": "text that matches {}",
}


def _check_bounds(_model: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    for keyword, bound in attribute.metadata["schema"].items():
        if keyword in _CHECKS and not _CHECKS[keyword](value, bound):
            raise ValueError(f"{attribute.name}: must be {_WORDS[keyword].format(bound)}")


def bounded(default: Any = attrs.NOTHING, **schema: Any) -> Any:
    """Make a field whose values have to fit some keywords of JSON Schema."""
    return attrs.field(default=default, **_bounds(**schema))


def _bounds(**schema: Any) -> Any:
    return {"validator": _check_bounds, "metadata": {"schema": schema}}


_NAME: Final = {"minLength": 1, "maxLength": 64}
_TOPIC: Final = {"minLength": 3, "maxLength": 80}
_SESSION: Final = {"pattern": "^[0-9a-f]{8}$"}


def _check_one_of(model: object, *names: str) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"{' or '.join(names)}: exactly one of them has to be given")


def _check_topic(text: str | None, name: str = "topic") -> None:
    if text is not None:
        try:
            Topic.parse(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


# Requests


@attrs.frozen(kw_only=True)
class PublishRequest:
    """Publish one message to everybody who holds its topic."""

    topic: str = bounded(**_TOPIC)
    """The topic, as TYPE:TARGET; `user:ID` for an alert or a notification to that user."""
    message: Mapping[str, Any]
    """The message with its `type`, as producers publish it. Numbers keep their digits."""
    idempotency_key: str | None = bounded(None, minLength=1, maxLength=128)
    """A name for this publication: another one of the topic with the same name is not published
    within a day, but answered as this one was."""

    def __attrs_post_init__(self) -> None:
        _check_topic(self.topic)


@attrs.frozen(kw_only=True)
class DisconnectRequest:
    """Close connections with 4003, after a message that says why and whether to come back."""

    one_of: ClassVar[tuple[str, ...]] = ("user", "session", "topic")
    user: str | None = bounded(None, **_NAME)
    """All connections of this user."""
    session: str | None = bounded(None, **_SESSION)
    """The connection with this hash of its session, as lists and logs show it."""
    topic: str | None = bounded(None, **_TOPIC)
    """All connections that hold this topic."""
    reason: str = bounded("disconnected by the operator", minLength=1, maxLength=200)
    """The reason that the client is given."""
    reconnect: bool = False
    """Whether the client may come back."""
    retry_after_ms: int | None = bounded(None, minimum=0, maximum=MAX_RETRY_MS)
    """When it may come back; by default spread, so that many do not come at once."""

    def __attrs_post_init__(self) -> None:
        _check_one_of(self, *self.one_of)
        _check_topic(self.topic)


@attrs.frozen(kw_only=True)
class RevokeRequest:
    """Make tokens invalid before they expire, and close the connections that use them."""

    one_of: ClassVar[tuple[str, ...]] = ("user", "jti")
    user: str | None = bounded(None, **_NAME)
    """The user (`sub`) whose tokens are revoked."""
    issued_before: float | None = bounded(None, minimum=0, maximum=2**40)
    """With `user`: those issued (`iat`) before this time, in seconds since 1970; by default now. A
    token without `iat` is revoked too."""
    jti: str | None = bounded(None, minLength=1, maxLength=256)
    """The id (`jti`) of the one token that is revoked."""

    def __attrs_post_init__(self) -> None:
        _check_one_of(self, *self.one_of)
        if self.issued_before is not None and self.user is None:
            raise ValueError("issued_before: goes with user")


@attrs.frozen(kw_only=True)
class ExplainRequest:
    """Ask which rule decides whether a client may have a topic."""

    topic: str = bounded(**_TOPIC)
    """The topic, as TYPE:TARGET."""
    user: str | None = bounded(None, **_NAME)
    """A user whose token has no patterns; without user and token, an anonymous client."""
    token: str | None = attrs.field(
        default=None, repr=False, **_bounds(minLength=1, maxLength=16_384)
    )
    """A token, which is verified as at a connection and not logged."""

    def __attrs_post_init__(self) -> None:
        _check_topic(self.topic)
        if self.user is not None and self.token is not None:
            raise ValueError("user or token: at most one of them may be given")


class ConnectionState(enum.StrEnum):
    """How a connection is doing."""

    OPEN = "open"
    SLOW = "slow"
    CLOSING = "closing"


class ConnectionSort(enum.StrEnum):
    """The columns by which connections are sorted."""

    CONNECTED_AT = "connected_at"
    ADDRESS = "address"
    SUBSCRIPTIONS = "subscriptions"
    MESSAGES_RECEIVED = "messages_received"
    QUEUED = "queued"


@attrs.frozen(kw_only=True)
class ConnectionsRequest:
    """List connections: those that fit all that is given."""

    user: str | None = bounded(None, **_NAME)
    """Those of this user."""
    topic: str | None = bounded(None, **_TOPIC)
    """Those that hold this topic."""
    address: str | None = bounded(None, minLength=1, maxLength=45)
    """Those from this address."""
    state: ConnectionState | None = None
    """open; slow: its socket is full; closing: a close is under way."""
    sort: ConnectionSort = ConnectionSort.CONNECTED_AT
    """The column that they are sorted by."""
    descending: bool = False
    """Whether the largest comes first."""
    limit: int = bounded(100, minimum=1, maximum=MAX_PAGE)
    """The most rows of the answer."""
    cursor: str | None = bounded(None, minLength=1, maxLength=400)
    """`next` of the page before."""

    def __attrs_post_init__(self) -> None:
        _check_topic(self.topic)


class TopicSort(enum.StrEnum):
    """The columns by which topics are sorted."""

    TOPIC = "topic"
    SUBSCRIBERS = "subscribers"
    RATE = "rate"


@attrs.frozen(kw_only=True)
class TopicsRequest:
    """List the topics that clients hold, or held a moment ago."""

    subscription_type: SubscriptionType | None = None
    """Those of this type."""
    topic: str | None = bounded(None, **_TOPIC)
    """This topic alone."""
    sort: TopicSort = TopicSort.TOPIC
    """topic: by name; subscribers and rate: the largest first, of the 10,000 largest of each
    process."""
    limit: int = bounded(100, minimum=1, maximum=MAX_PAGE)
    """The most rows of the answer."""
    cursor: str | None = bounded(None, minLength=1, maxLength=400)
    """`next` of the page before."""

    def __attrs_post_init__(self) -> None:
        _check_topic(self.topic)


@attrs.frozen(kw_only=True)
class InfoRequest:
    """Ask for the processes, their version and their settings."""


# Answers


@attrs.frozen(kw_only=True)
class Published:
    """A publication that Redis has."""

    topic: str
    epoch: str | None
    """With `sequence`, its position; both null on the bus inside a process, which has none."""
    sequence: int | None
    receivers: int
    """Processes that received it, not their clients."""
    duplicate: bool
    """Whether its idempotency key had been published before, and now nothing was."""


@attrs.frozen(kw_only=True)
class Reached:
    """How many connections were closed, and by how many processes."""

    count: int
    """Connections that are being closed."""
    processes: int
    """Server processes that Redis passed the request on to, this one included."""
    answered: int
    """How many of them answered in time."""


@attrs.frozen(kw_only=True)
class Revoked:
    """The revocation that is kept, and the connections closed for it."""

    count: int
    """Connections that are being closed."""
    processes: int
    """Server processes that Redis passed the request on to, this one included."""
    answered: int
    """How many of them answered in time; the others read it when they are back."""
    kept_until: str
    """RFC 3339, in UTC: by then every token that it is about has expired."""


@attrs.frozen(kw_only=True)
class Explanation:
    """Whether a client may have a topic."""

    topic: str
    user: str | None
    """The user; null for an anonymous client."""
    allowed: bool
    rule: str
    """The rule that decided, for people."""


@attrs.frozen(kw_only=True)
class ConnectionRow:
    """One connection."""

    process: str
    """The server process that serves it."""
    session: str
    """A hash of its session, which cannot be used to restore it."""
    user: str | None
    address: str
    user_agent: str | None
    state: ConnectionState
    connected_at: str
    """RFC 3339, in UTC."""
    idle_seconds: float
    """Seconds since anything came from the client."""
    subscriptions: int
    topics: Sequence[str]
    """The first twenty of them, by name."""
    messages_received: int
    """Messages from the client."""
    delivered: int
    """Messages to the client."""
    queued: int
    """Messages that wait, since its socket is full."""


@attrs.frozen(kw_only=True)
class ConnectionsPage:
    """Connections, and where the next page begins."""

    total: int
    """Connections that fit, on all pages."""
    processes: int
    answered: int
    connections: Sequence[ConnectionRow]
    next: str | None
    """The cursor of the next page; null on the last."""


@attrs.frozen(kw_only=True)
class TopicRow:
    """One topic, over all processes."""

    topic: str
    subscribers: int
    producer: str | None
    """positioned: producers that give positions; plain: others; null if nothing is known."""
    publisher: str | None
    """The process that published last, as HOST:PID, where producers give positions; null for plain
    ones, whom Redis does not name."""
    epoch: str
    sequence: int
    rate: float | None
    """Publications a second over the last half minute or so; null while unknown."""
    last_message_at: str | None
    """The time that the last message names; null if none has arrived."""


@attrs.frozen(kw_only=True)
class TopicsPage:
    """Topics, and where the next page begins."""

    processes: int
    answered: int
    topics: Sequence[TopicRow]
    next: str | None
    """The cursor of the next page; null on the last."""


@attrs.frozen(kw_only=True)
class ProcessInfo:
    """One server process."""

    process: str
    """Its id, as other answers name it."""
    host: str
    pid: int
    version: str
    started_at: str
    """RFC 3339, in UTC."""
    uptime_seconds: float
    connections: int
    ready: bool
    reason: str | None
    """Why it is not ready."""


@attrs.frozen(kw_only=True)
class Info:
    """The processes that answered, and the settings of the one that was asked."""

    version: str
    processes: int
    answered: int
    servers: Sequence[ProcessInfo]
    settings: Mapping[str, Any]
    """All settings; a password in a URL is left out, and a file is its path."""


REQUESTS: Final[Mapping[str, tuple[type[Any], type[Any]]]] = {
    "publish": (PublishRequest, Published),
    "disconnect": (DisconnectRequest, Reached),
    "revoke": (RevokeRequest, Revoked),
    "explain": (ExplainRequest, Explanation),
    "connections": (ConnectionsRequest, ConnectionsPage),
    "topics": (TopicsRequest, TopicsPage),
    "info": (InfoRequest, Info),
}
"""The model of the request and of the answer of each endpoint."""


# Decoding


def structure(model: type[T], value: Any) -> T:
    """Make a request from JSON types. Raises ApiError (422) with the fields that are wrong."""
    if not isinstance(value, dict):
        raise ApiError(422, "the body has to be a JSON object")
    names = attrs.fields_dict(model)  # type: ignore[arg-type] # all are attrs classes
    unknown = {name: "is no field of this request" for name in value if name not in names}
    if unknown:
        raise ApiError(422, f"unknown field: {', '.join(unknown)}", fields=unknown)
    try:
        return CONVERTER.structure(value, model)
    except cattrs.BaseValidationError as error:
        fields = dict(map(_field_and_problem, explain(error)))
        message = "; ".join(f"{name}: {problem}" for name, problem in fields.items())
        raise ApiError(422, message, fields=fields) from None


def _field_and_problem(line: str) -> tuple[str, str]:
    """Take a line of `explain` apart: the path of the field, and what is wrong with it."""
    path, _, problem = line.partition(": ")
    if path != "$":
        return path.removeprefix("$."), problem
    # The check of a whole model names the field itself.
    name, colon, rest = problem.partition(": ")
    return (name, rest) if colon else ("", problem)
