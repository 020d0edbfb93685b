"""The messages that a client receives, as models.

The server's models (`streamer.protocol.messages`) have plain numbers. Here numbers are Decimal, so
that a price has the digits that its producer wrote, and members beyond the contract are in `extra`.
Most control messages are the protocol's own models.

A later server may send values that this version does not know. Where the contract has a fixed set
of strings (a status, a priority, a reason, an error code), an unknown one is kept as a plain `str`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar

import attrs

from streamer.protocol import messages
from streamer.protocol.topics import Topic


def _decimal(value: Any) -> Decimal:
    # bool is an int, too.
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return Decimal(value)


def _levels(value: Any) -> tuple[PriceLevel, ...]:
    if isinstance(value, tuple):
        return value  # the result of a delta
    if not isinstance(value, list) or not all(isinstance(level, dict) for level in value):
        raise TypeError("expected a list of objects")
    return tuple(
        PriceLevel(level.get("price"), level.get("quantity"), level.get("orders"))
        for level in value
    )


def member_or_text(enumeration: type[enum.StrEnum], value: Any) -> Any:
    """Return the member of `enumeration` with this value, or the string itself if there is none.

    Raises TypeError if `value` is not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    try:
        return enumeration(value)
    except ValueError:
        return value


def _market_phase(value: Any) -> messages.MarketPhase | str:
    phase: messages.MarketPhase | str = member_or_text(messages.MarketPhase, value)
    return phase


def _priority(value: Any) -> messages.Priority | str:
    priority: messages.Priority | str = member_or_text(messages.Priority, value)
    return priority


def _is(*types: type) -> Any:
    return attrs.validators.and_(
        attrs.validators.instance_of(types),
        attrs.validators.not_(attrs.validators.instance_of(bool)),
    )


_STRING = attrs.validators.instance_of(str)
_WHOLE = _is(int)
_OPTIONAL_WHOLE = attrs.validators.optional(_WHOLE)
_OBJECT = attrs.validators.instance_of(dict)


@attrs.frozen(kw_only=True)
class Data:
    """The members that every data message has."""

    type: ClassVar[str]
    timestamp: str = attrs.field(validator=_STRING)
    """RFC 3339, UTC."""
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    """Members beyond the contract, as the producer wrote them; fractions are Decimal."""
    text: str = attrs.field(default="", repr=False, eq=False)
    """The JSON object as it was received."""
    topic: Topic | None = None
    """The topic to which it belongs; None before a Verifier has found it."""
    sequence: int = attrs.field(validator=_WHOLE)
    previous: int | None = attrs.field(default=None, validator=_OPTIONAL_WHOLE)
    """The sequence that it follows for this client, if that is not `sequence - 1`."""
    snapshot: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    """Whether it repeats the last known value rather than being a new publication."""

    def assign_topic(self, topic: Topic | None) -> None:
        """Set `topic`; only for the code that decodes the message, before it returns it."""
        # Not attrs.evolve, which would validate and convert every member a second time.
        object.__setattr__(self, "topic", topic)

    @property
    def follows(self) -> int:
        """The sequence that it follows for this client."""
        return self.sequence - 1 if self.previous is None else self.previous

    @property
    def about(self) -> str:
        """The stock code or market that the message names; for a message to a user, its id."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class PriceUpdate(Data):
    """The price of a stock."""

    type: ClassVar[str] = messages.PriceUpdate.type
    stock_code: str = attrs.field(validator=_STRING)
    price: Decimal = attrs.field(converter=_decimal)
    change: Decimal = attrs.field(converter=_decimal)
    change_percent: Decimal = attrs.field(converter=_decimal)
    volume: Decimal = attrs.field(converter=_decimal)

    @property
    def about(self) -> str:
        """The stock code."""
        return self.stock_code


@attrs.frozen
class PriceLevel:
    """One level of an order book."""

    price: Decimal = attrs.field(converter=_decimal)
    quantity: Decimal = attrs.field(converter=_decimal)
    orders: int | None = attrs.field(default=None, validator=_OPTIONAL_WHOLE)


@attrs.frozen(kw_only=True)
class OrderbookUpdate(Data):
    """The top of an order book, best price first."""

    type: ClassVar[str] = messages.OrderbookUpdate.type
    stock_code: str = attrs.field(validator=_STRING)
    bids: Sequence[PriceLevel] = attrs.field(converter=_levels)
    asks: Sequence[PriceLevel] = attrs.field(converter=_levels)

    @property
    def about(self) -> str:
        """The stock code."""
        return self.stock_code


@attrs.frozen(kw_only=True)
class PriceDelta(Data):
    """The members of a price that changed. A client delivers the whole price instead."""

    type: ClassVar[str] = messages.PriceDelta.type
    stock_code: str = attrs.field(validator=_STRING)
    changes: Mapping[str, Any] = attrs.field(factory=dict)
    """The members that changed; None: one that became null."""

    @property
    def about(self) -> str:
        """The stock code."""
        return self.stock_code


@attrs.frozen(kw_only=True)
class OrderbookDelta(Data):
    """The levels of a book that changed. A client delivers the whole book instead."""

    type: ClassVar[str] = messages.OrderbookDelta.type
    stock_code: str = attrs.field(validator=_STRING)
    bids: Sequence[PriceLevel] = attrs.field(converter=_levels)
    asks: Sequence[PriceLevel] = attrs.field(converter=_levels)
    checksum: int = attrs.field(validator=_WHOLE)
    changes: Mapping[str, Any] = attrs.field(factory=dict)
    """The further members that changed; None: one that became null."""

    @property
    def about(self) -> str:
        """The stock code."""
        return self.stock_code


@attrs.frozen(kw_only=True)
class MarketStatus(Data):
    """The present phase of a market."""

    type: ClassVar[str] = messages.MarketStatus.type
    market: str = attrs.field(validator=_STRING)
    status: messages.MarketPhase | str = attrs.field(converter=_market_phase)

    @property
    def about(self) -> str:
        """The market."""
        return self.market


@attrs.frozen(kw_only=True)
class Alert(Data):
    """The condition of a user's alert is met."""

    type: ClassVar[str] = messages.Alert.type
    alert_id: str | int = attrs.field(validator=_is(str, int))
    stock_code: str = attrs.field(validator=_STRING)
    alert_type: str = attrs.field(validator=_STRING)
    message: str = attrs.field(validator=_STRING)
    data: Mapping[str, Any] | None = attrs.field(
        default=None, validator=attrs.validators.optional(_OBJECT)
    )

    @property
    def about(self) -> str:
        """The id of the alert."""
        return str(self.alert_id)


@attrs.frozen(kw_only=True)
class Notification(Data):
    """A message to a user."""

    type: ClassVar[str] = messages.Notification.type
    notification_id: str | int = attrs.field(validator=_is(str, int))
    title: str = attrs.field(validator=_STRING)
    message: str = attrs.field(validator=_STRING)
    notification_type: str = attrs.field(validator=_STRING)
    priority: messages.Priority | str = attrs.field(converter=_priority)

    @property
    def about(self) -> str:
        """The id of the notification."""
        return str(self.notification_id)


@attrs.frozen
class Gap(messages.Gap):
    """Publications of a topic are missing and will not be sent; its stream resumes at a position.

    `reason` is a plain string if this version does not know it.
    """

    text: str = attrs.field(default="", repr=False, eq=False)
    """The JSON object as it was received."""

    @property
    def topic(self) -> Topic:
        """The topic whose publications are missing."""
        return Topic(self.subscription_type, self.target)


@attrs.frozen
class Error(messages.Error):
    """The server did not carry out a request, or has a fault of its own.

    `code` is a plain string if this version does not know it.
    """

    text: str = attrs.field(default="", repr=False, eq=False)
    """The JSON object as it was received."""


@attrs.frozen
class Unknown:
    """A message of a type that this version does not know."""

    type: str
    text: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Unreadable:
    """A message that this client cannot read, with those members that identify its place.

    Examples are a number with an exponent of four digits and a list nested a thousand deep: both
    are valid JSON, and a producer may put them in any member. With its position, the message can be
    skipped without doubt about the rest of the stream.
    """

    problem: str
    text: str = attrs.field(repr=False)
    type: str | None = None
    """None if it is not a JSON object with a type."""
    request_id: messages.RequestId | None = None
    about: str = ""
    """The stock code or the market, as in `Data`."""
    sequence: int | None = None
    previous: int | None = None
    snapshot: bool = False
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    """`subscription_type` and `target`, if it names its topic."""

    @property
    def follows(self) -> int:
        """The sequence that it follows for this client."""
        assert self.sequence is not None
        return self.sequence - 1 if self.previous is None else self.previous
