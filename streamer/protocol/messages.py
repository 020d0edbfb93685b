"""Every message of the wire contract as an attrs model.

The models are the contract: codec, JSON Schema and protocol reference are made from them. A field
whose default is None is left out of the JSON when it is None. `type` is the class's own
name on the wire; `timestamp` of a server message is added by `codec.encode`.
"""

from __future__ import annotations

import enum
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import attrs
import orjson

from streamer.protocol.errors import ErrorCode
from streamer.protocol.json_text import is_utf8
from streamer.protocol.topics import KINDS, Kind, SubscriptionType

RequestId = str | int
"""Returned in the answer to the request: a string or an integer of at most 64 characters."""

MAX_REQUEST_ID_CHARACTERS: Final = 64

MAX_EPOCH_CHARACTERS: Final = 64

MAX_SEQUENCE: Final = 2**53
"""Every sequence is below this."""

MIN_RATE: Final = 0.001
MAX_RATE: Final = 1e9
"""Bounds of `max_rate`: at least a message in 1,000 s, so that every message is sent in the end."""


MIN_BANDWIDTH: Final = 1000
MAX_BANDWIDTH: Final = 1e9
"""Bounds of `max_bandwidth`: with less than 1 kB/s, a client would never be up to date."""


def _check_bandwidth(_instance: object, _attribute: object, value: float | None) -> None:
    if value and not MIN_BANDWIDTH <= value <= MAX_BANDWIDTH:
        raise ValueError(f"max_bandwidth is 0, or from {MIN_BANDWIDTH} to {MAX_BANDWIDTH:.0f}")


def _check_request_id(_instance: object, _attribute: object, value: RequestId | None) -> None:
    # Compared as a number: Python refuses to convert a very long integer to a string.
    too_long = isinstance(value, int) and abs(value) >= 10**MAX_REQUEST_ID_CHARACTERS
    if too_long or len(str(value)) > MAX_REQUEST_ID_CHARACTERS:
        raise ValueError(f"request_id is longer than {MAX_REQUEST_ID_CHARACTERS} characters")


class Mode(enum.StrEnum):
    """The treatment of a subscription's messages when its client is behind."""

    LATEST = "latest"
    ALL = "all"


class MarketPhase(enum.StrEnum):
    """The `status` of a market."""

    OPEN = "open"
    CLOSED = "closed"
    PRE_MARKET = "pre_market"
    AFTER_HOURS = "after_hours"


class Priority(enum.StrEnum):
    """How urgent a notification is."""

    LOW = "LOW"
    NORMAL = "NORMAL"
    HIGH = "HIGH"
    URGENT = "URGENT"


class GapReason(enum.StrEnum):
    """Why a stream has a hole that the server could not fill."""

    SOURCE_RECONNECTED = "source_reconnected"
    HISTORY_EXPIRED = "history_expired"
    SOURCE_UNAVAILABLE = "source_unavailable"
    BOOK_UNKNOWN = "book_unknown"
    """A change of an order book could not be applied: the book is unknown until a whole one."""


class EndReason(enum.StrEnum):
    """Why the server ended a subscription."""

    FORBIDDEN = "forbidden"


def _check_epoch(_instance: object, _attribute: object, value: str) -> None:
    if len(value) > MAX_EPOCH_CHARACTERS or not is_utf8(value):
        raise ValueError(f"'epoch' must be a string of at most {MAX_EPOCH_CHARACTERS} characters")


def _check_sequence(_instance: object, _attribute: object, value: int) -> None:
    if not 0 <= value < MAX_SEQUENCE:
        raise ValueError(f"'sequence' must be >= 0 and < {MAX_SEQUENCE}")


@attrs.frozen
class Position:
    """A place in a topic's stream.

    A sequence alone is ambiguous after a restart: counting starts again, and an old 17 looks like a
    new one. The epoch distinguishes the two.
    """

    epoch: str = attrs.field(validator=_check_epoch)
    sequence: int = attrs.field(validator=_check_sequence)
    """Below 2**53, so that a browser can count it by one (ECMAScript MAX_SAFE_INTEGER)."""


# Client -> server


@attrs.frozen
class Subscribe:
    """Ask for topics; answered with `subscribed`."""

    type: ClassVar[str] = "subscribe"
    subscription_type: SubscriptionType
    targets: Sequence[Any]
    """Strings; any other value is rejected alone and does not affect the other targets."""
    kinds: Sequence[Kind] | None = None
    """The kinds that are wanted, of those that the topic carries; all by default."""
    mode: Mode = Mode.LATEST
    """When the client is behind: merge messages (latest), or hold all, up to a limit at which the
    connection is closed (all)."""
    max_rate: float | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(
            [attrs.validators.ge(MIN_RATE), attrs.validators.le(MAX_RATE)]
        ),
    )
    """The most messages per second of each target and kind; the newest are kept."""
    max_bandwidth: float | None = attrs.field(default=None, validator=_check_bandwidth)
    """As in `options`: it holds for the connection, not for the targets alone."""
    delta: bool = False
    """Whether prices and order books come as changes (`price_delta`, `orderbook_delta`) after the
    first whole message."""
    depth: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    """Levels of each side of an order book, the best ones; at most `max_book_levels` of `limits`.
    All by default."""
    snapshot: bool = True
    """Whether the last known value of each target follows the answer."""
    since: Mapping[str, Position] | None = None
    """Target -> the last position that the client holds; the missed messages follow the answer."""
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)

    def __attrs_post_init__(self) -> None:
        carried = KINDS[self.subscription_type]
        if self.kinds is not None and not (self.kinds and set(self.kinds) <= set(carried)):
            raise ValueError(f"kinds of {self.subscription_type} are {' and '.join(carried)}")
        if self.max_rate is not None and self.mode is Mode.ALL:
            raise ValueError("max_rate merges messages, which mode all forbids")


@attrs.frozen
class Unsubscribe:
    """End subscriptions; answered with `unsubscribed`."""

    type: ClassVar[str] = "unsubscribe"
    subscription_type: SubscriptionType
    targets: Sequence[Any]
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)


@attrs.frozen
class Resync:
    """Ask for whole messages: a delta could not be applied, or its checksum was wrong."""

    type: ClassVar[str] = "resync"
    subscription_type: SubscriptionType
    targets: Sequence[Any]
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)


@attrs.frozen
class Ping:
    """Ask for a `pong`: for clients that cannot send WebSocket pings (browsers)."""

    type: ClassVar[str] = "ping"
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)


@attrs.frozen
class Authenticate:
    """Present an access token: the first one, or a new one of the same user.

    Permissions are those of the new token from then on. Answered with `authenticated`.
    """

    type: ClassVar[str] = "authenticate"
    token: str = attrs.field(repr=False)
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)


@attrs.frozen
class SetOptions:
    """Change options of the connection, or ask for them; answered with `options`."""

    type: ClassVar[str] = "options"
    max_bandwidth: float | None = attrs.field(default=None, validator=_check_bandwidth)
    """The most bytes per second that the server sends, 1,000 to 1e9; 0 = no limit. Beyond it the
    client counts as behind. `reconnect` restores it, unless the new connection has named one."""
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)


@attrs.frozen
class RefreshToken:
    """Exchange a refresh token for a new access token, which is also used for the connection."""

    type: ClassVar[str] = "refresh_token"
    refresh_token: str = attrs.field(repr=False)
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)


@attrs.frozen
class Reconnect:
    """Restore a session: its subscriptions, and the messages missed since `positions`."""

    type: ClassVar[str] = "reconnect"
    session_id: str
    positions: Mapping[str, Position] = attrs.field(factory=dict)
    """Topic as `type:target` -> the last position the client holds."""
    request_id: RequestId | None = attrs.field(default=None, validator=_check_request_id)


ClientMessage = (
    Subscribe | Unsubscribe | Resync | Ping | SetOptions | Authenticate | RefreshToken | Reconnect
)

CLIENT_MESSAGES: Final[tuple[type[ClientMessage], ...]] = (
    Subscribe,
    Unsubscribe,
    Resync,
    Ping,
    SetOptions,
    Authenticate,
    RefreshToken,
    Reconnect,
)


# Server -> client: answers and events


@attrs.frozen
class Connected:
    """The first message on every connection."""

    type: ClassVar[str] = "connected"
    session_id: str
    """Restores the subscriptions on another connection, by `reconnect` or in the URL."""
    protocol: int
    """The version of the protocol: 1."""
    heartbeat_interval: float
    """Seconds between the server's WebSocket pings."""
    limits: Mapping[str, float]
    """The limits that hold for the client, by the names of the server's settings."""
    user_id: str | None = None
    """The user, if the handshake brought a token."""
    expires_in: float | None = None
    """Seconds until the token of the handshake ends, unless it has no end."""
    positions: Mapping[str, Position] | None = None
    """The user's own topic, as `user:USER_ID` -> the position that its next message follows."""


def _echo(target: object) -> object:
    """Make a target encodable: the codec has wrapped those that orjson would alter."""
    if isinstance(target, list | dict) or (isinstance(target, float) and not math.isfinite(target)):
        return reprlib.repr(target)
    if isinstance(target, str) and not is_utf8(target):
        return orjson.Fragment(json.dumps(target).encode())
    return target


@attrs.frozen
class RejectedTarget:
    """One target of a request that was refused, and why."""

    target: Any = attrs.field(converter=_echo)
    """The target as it was sent; one with more than 64 brackets is cut and given as a string."""
    code: ErrorCode
    message: str


@attrs.frozen
class Subscribed:
    """The answer to `subscribe`; snapshots of the targets follow it."""

    type: ClassVar[str] = "subscribed"
    subscription_type: SubscriptionType
    targets: Sequence[str]
    """The targets of the request that are now subscribed to."""
    rejected: Sequence[RejectedTarget]
    """The targets of the request that were refused, each with the reason."""
    positions: Mapping[str, Position]
    """Target -> the position that its next message follows: the stream's present position, or that
    of `since` if missed messages follow."""
    request_id: RequestId | None = None


@attrs.frozen
class Unsubscribed:
    """The answer to `unsubscribe`; no message of these targets follows it.

    Without a `request_id` and with a `reason` it is no answer: the server ended the subscriptions.
    """

    type: ClassVar[str] = "unsubscribed"
    subscription_type: SubscriptionType
    targets: Sequence[str]
    rejected: Sequence[RejectedTarget]
    reason: EndReason | None = None
    """`forbidden`: the client's new token does not permit these targets."""
    request_id: RequestId | None = None


@attrs.frozen
class Resynced:
    """The answer to `resync`; whole messages, marked `"snapshot": true`, follow it.

    They are those that the client should hold at its present position, and the bases of the next
    deltas.
    """

    type: ClassVar[str] = "resynced"
    subscription_type: SubscriptionType
    targets: Sequence[str]
    """The targets of the request that are subscribed to."""
    rejected: Sequence[RejectedTarget]
    request_id: RequestId | None = None


@attrs.frozen
class Pong:
    """The answer to `ping`."""

    type: ClassVar[str] = "pong"
    request_id: RequestId | None = None


@attrs.frozen
class ConnectionOptions:
    """The answer to `options`: what holds for the connection now."""

    type: ClassVar[str] = "options"
    max_bandwidth: float
    """Bytes per second; 0 = no limit."""
    request_id: RequestId | None = None


@attrs.frozen
class Authenticated:
    """The answer to `authenticate`."""

    type: ClassVar[str] = "authenticated"
    user_id: str
    expires_in: float | None = None
    """Seconds until the token ends, unless it has no end."""
    positions: Mapping[str, Position] = attrs.field(factory=dict)
    """The user's own topic, as `user:USER_ID` -> the position that its next message follows."""
    request_id: RequestId | None = None


@attrs.frozen
class TokenExpiring:
    """The client's token ends soon: send a new one by `authenticate`, or `refresh_token`, now.

    The server chooses the moment, so that the clients of many tokens that end together do not all
    ask for new ones at once.
    """

    type: ClassVar[str] = "token_expiring"
    expires_in: float
    """Seconds until the token ends. The connection is closed with 4001 some seconds later."""


@attrs.frozen
class TokenRefreshed:
    """The answer to `refresh_token`."""

    type: ClassVar[str] = "token_refreshed"
    access_token: str = attrs.field(repr=False)
    expires_in: float | None = None
    """Seconds until the access token ends, unless it has no end."""
    positions: Mapping[str, Position] | None = None
    """The user's own topic with its position, if the connection had no user before."""
    request_id: RequestId | None = None


@attrs.frozen
class Reconnected:
    """The answer to `reconnect`; the missed messages follow it, in order, then the live ones."""

    type: ClassVar[str] = "reconnected"
    session_id: str
    """The id of the new session."""
    restored_subscriptions: Mapping[SubscriptionType, Sequence[str]]
    """Type -> targets. Those of the former session that are missing here are in `rejected`."""
    missed_messages_count: int
    """How many missed messages follow."""
    recovered: bool
    """True only if every missed message follows."""
    positions: Mapping[str, Position] = attrs.field(factory=dict)
    """Topic as `type:target` -> the position that its next message follows, missed or live."""
    rejected: Mapping[SubscriptionType, Sequence[RejectedTarget]] | None = None
    """Type -> the targets of the former session that were refused, each with the reason."""
    request_id: RequestId | None = None


@attrs.frozen
class Error:
    """A request that was not carried out. It never closes the connection by itself."""

    type: ClassVar[str] = "error"
    code: ErrorCode
    """For programs."""
    message: str
    """For people; it may change."""
    details: Mapping[str, Any] | None = None
    """More about the fault, such as `errors`, a reason for each wrong field."""
    request_id: RequestId | None = None


@attrs.frozen
class Gap:
    """A hole in a topic's stream that could not be filled; the stream resumes at the position."""

    type: ClassVar[str] = "gap"
    subscription_type: SubscriptionType
    target: str
    reason: GapReason
    epoch: str
    sequence: int
    """Where the stream resumes: the next live message follows this sequence."""


@attrs.frozen
class ServerShutdown:
    """The server is about to close with 1001."""

    type: ClassVar[str] = "server_shutdown"
    retry_after_ms: int
    """The delay before this client should reconnect: spread, so that not all come at once."""


@attrs.frozen
class Disconnected:
    """An operator ended the connection; the close with 4003 follows."""

    type: ClassVar[str] = "disconnected"
    reason: str
    """The operator's words."""
    reconnect: bool
    """Whether the client may reconnect."""
    retry_after_ms: int | None = None
    """The delay before it reconnects, if the operator asks for one."""


@attrs.frozen
class Closed:
    """The last message over HTTP, where there is no close frame: the server ends the stream."""

    type: ClassVar[str] = "closed"
    code: int
    """The close code, as for a WebSocket."""
    reason: str
    """For people, and to distinguish causes with the same code."""


# Server -> client: data. Producers write these to Redis; members that they add are passed on.


@attrs.frozen
class PriceUpdate:
    """A trade, or the state of a price."""

    type: ClassVar[str] = "price_update"
    stock_code: str
    price: float
    change: float
    change_percent: float
    volume: float
    timestamp: str | None = None
    sequence: int | None = None
    previous: int | None = None
    snapshot: bool | None = None


@attrs.frozen
class PriceLevel:
    """One level of an order book."""

    price: float
    quantity: float
    orders: int | None = None


@attrs.frozen
class OrderbookUpdate:
    """The top of an order book, best price first."""

    type: ClassVar[str] = "orderbook_update"
    stock_code: str
    bids: Sequence[PriceLevel]
    asks: Sequence[PriceLevel]
    timestamp: str | None = None
    sequence: int | None = None
    previous: int | None = None
    snapshot: bool | None = None


@attrs.frozen
class OrderbookDelta:
    """The changes of an order book since the last one that the client was sent.

    The producer's further fields that changed are in it, too.
    """

    type: ClassVar[str] = "orderbook_delta"
    stock_code: str
    bids: Sequence[PriceLevel]
    """The levels that changed, each with its new quantity; 0 = the level is gone."""
    asks: Sequence[PriceLevel]
    checksum: int | None = None
    """CRC-32 of the book after the change. The server always writes it."""
    timestamp: str | None = None
    sequence: int | None = None
    previous: int | None = None


@attrs.frozen
class PriceDelta:
    """The fields of a `price_update` that changed since the last one that the client was sent.

    The producer's further fields are included. One that became null is null.
    """

    type: ClassVar[str] = "price_delta"
    stock_code: str
    price: float | None = None
    change: float | None = None
    change_percent: float | None = None
    volume: float | None = None
    timestamp: str | None = None
    sequence: int | None = None
    previous: int | None = None


@attrs.frozen
class MarketStatus:
    """A market opened, closed, or changed phase."""

    type: ClassVar[str] = "market_status"
    market: str
    status: MarketPhase
    timestamp: str | None = None
    sequence: int | None = None
    previous: int | None = None
    snapshot: bool | None = None


@attrs.frozen
class Alert:
    """The condition of a user's alert is met."""

    type: ClassVar[str] = "alert"
    alert_id: str | int
    stock_code: str
    alert_type: str
    message: str
    data: Mapping[str, Any] | None = None
    timestamp: str | None = None
    sequence: int | None = None
    previous: int | None = None
    snapshot: bool | None = None


@attrs.frozen
class Notification:
    """A message to a user."""

    type: ClassVar[str] = "notification"
    notification_id: str | int
    title: str
    message: str
    notification_type: str
    priority: Priority
    timestamp: str | None = None
    sequence: int | None = None
    previous: int | None = None
    snapshot: bool | None = None


DataMessage = (
    PriceUpdate
    | OrderbookUpdate
    | MarketStatus
    | Alert
    | Notification
    | PriceDelta
    | OrderbookDelta
)


@attrs.frozen
class Batch:
    """The messages that one flush holds for a client, when they are more than one, in order."""

    type: ClassVar[str] = "batch"
    messages: Sequence[DataMessage]
    batch_size: int
    """How many messages there are."""


ServerMessage = (
    Connected
    | Subscribed
    | Unsubscribed
    | Resynced
    | Pong
    | ConnectionOptions
    | Authenticated
    | TokenExpiring
    | TokenRefreshed
    | Reconnected
    | Error
    | Gap
    | ServerShutdown
    | Disconnected
    | Closed
    | PriceUpdate
    | OrderbookUpdate
    | MarketStatus
    | Alert
    | Notification
    | PriceDelta
    | OrderbookDelta
    | Batch
)

DATA_MESSAGES: Final[Mapping[Kind, type[DataMessage]]] = {
    Kind.PRICE: PriceUpdate,
    Kind.ORDERBOOK: OrderbookUpdate,
    Kind.STATUS: MarketStatus,
    Kind.ALERT: Alert,
    Kind.NOTIFICATION: Notification,
}
"""The message that each kind of channel carries."""

DELTA_MESSAGES: Final[Mapping[Kind, type[DataMessage]]] = {
    Kind.PRICE: PriceDelta,
    Kind.ORDERBOOK: OrderbookDelta,
}
"""The changes of such a message, for clients that ask for them. Producers may publish those of an
order book, too."""

SERVER_MESSAGES: Final[tuple[type[ServerMessage], ...]] = (
    Connected,
    Subscribed,
    Unsubscribed,
    Resynced,
    Pong,
    ConnectionOptions,
    Authenticated,
    TokenExpiring,
    TokenRefreshed,
    Reconnected,
    Error,
    Gap,
    ServerShutdown,
    Disconnected,
    Closed,
    *DATA_MESSAGES.values(),
    *DELTA_MESSAGES.values(),
    Batch,
)
