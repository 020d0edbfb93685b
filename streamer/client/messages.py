"""The data messages as a client holds them.

The server's models (`streamer.protocol.messages`) describe JSON, where a number is a number. Here
numbers are Decimal, so that a price has the digits its producer wrote, and what a producer added
beyond the contract is in `extra`. Control messages are the protocol's own models.
"""

from __future__ import annotations

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
    if not isinstance(value, list) or not all(isinstance(level, dict) for level in value):
        raise TypeError("expected a list of objects")
    return tuple(
        PriceLevel(level.get("price"), level.get("quantity"), level.get("orders"))
        for level in value
    )


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
    """What every data message has."""

    type: ClassVar[str]
    timestamp: str = attrs.field(validator=_STRING)
    """RFC 3339, UTC."""
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    """What the producer added beyond the contract; numbers with a fraction are Decimal."""
    text: str = attrs.field(default="", repr=False, eq=False)
    """The JSON object as it was received."""


@attrs.frozen(kw_only=True)
class Streamed(Data):
    """A message of a topic's stream."""

    topic: Topic | None = None
    """The subscription that it belongs to; None until a Verifier has placed it."""
    sequence: int = attrs.field(validator=_WHOLE)
    previous: int | None = attrs.field(default=None, validator=_OPTIONAL_WHOLE)
    """The sequence that it follows for this client, where that is not `sequence - 1`."""
    snapshot: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    """Whether it is the last known value rather than news."""

    def place(self, topic: Topic | None) -> None:
        """Set its topic: by whoever decoded it, before anybody else has it."""
        # Not attrs.evolve, which would check and convert every member a second time.
        object.__setattr__(self, "topic", topic)

    @property
    def follows(self) -> int:
        """The sequence that it follows for this client."""
        return self.sequence - 1 if self.previous is None else self.previous

    @property
    def about(self) -> str:
        """The stock code or the market."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class PriceUpdate(Streamed):
    """A trade, or the state of a price."""

    type: ClassVar[str] = messages.PriceUpdate.type
    stock_code: str = attrs.field(validator=_STRING)
    price: Decimal = attrs.field(converter=_decimal)
    change: Decimal = attrs.field(converter=_decimal)
    change_percent: Decimal = attrs.field(converter=_decimal)
    volume: Decimal = attrs.field(converter=_decimal)

    @property
    def about(self) -> str:
        """Its stock code."""
        return self.stock_code


@attrs.frozen
class PriceLevel:
    """One level of an order book."""

    price: Decimal = attrs.field(converter=_decimal)
    quantity: Decimal = attrs.field(converter=_decimal)
    orders: int | None = attrs.field(default=None, validator=_OPTIONAL_WHOLE)


@attrs.frozen(kw_only=True)
class OrderbookUpdate(Streamed):
    """The top of an order book, best price first."""

    type: ClassVar[str] = messages.OrderbookUpdate.type
    stock_code: str = attrs.field(validator=_STRING)
    bids: Sequence[PriceLevel] = attrs.field(converter=_levels)
    asks: Sequence[PriceLevel] = attrs.field(converter=_levels)

    @property
    def about(self) -> str:
        """Its stock code."""
        return self.stock_code


@attrs.frozen(kw_only=True)
class MarketStatus(Streamed):
    """A market opened, closed, or changed phase."""

    type: ClassVar[str] = messages.MarketStatus.type
    market: str = attrs.field(validator=_STRING)
    status: messages.MarketPhase = attrs.field(converter=messages.MarketPhase)

    @property
    def about(self) -> str:
        """Its market."""
        return self.market


@attrs.frozen(kw_only=True)
class Alert(Data):
    """A condition that a user asked to be told of has come true."""

    type: ClassVar[str] = messages.Alert.type
    alert_id: str | int = attrs.field(validator=_is(str, int))
    stock_code: str = attrs.field(validator=_STRING)
    alert_type: str = attrs.field(validator=_STRING)
    message: str = attrs.field(validator=_STRING)
    data: Mapping[str, Any] | None = attrs.field(
        default=None, validator=attrs.validators.optional(_OBJECT)
    )


@attrs.frozen(kw_only=True)
class Notification(Data):
    """A message to a user."""

    type: ClassVar[str] = messages.Notification.type
    notification_id: str | int = attrs.field(validator=_is(str, int))
    title: str = attrs.field(validator=_STRING)
    message: str = attrs.field(validator=_STRING)
    notification_type: str = attrs.field(validator=_STRING)
    priority: messages.Priority = attrs.field(converter=messages.Priority)


@attrs.frozen
class Gap(messages.Gap):
    """A hole in a topic's stream that could not be filled; the stream resumes at the position."""

    text: str = attrs.field(default="", repr=False, eq=False)
    """The JSON object as it was received."""

    @property
    def topic(self) -> Topic:
        """The topic whose stream it is."""
        return Topic(self.subscription_type, self.target)


@attrs.frozen
class Error(messages.Error):
    """A request that was not carried out, or a fault of the server's own."""

    text: str = attrs.field(default="", repr=False, eq=False)
    """The JSON object as it was received."""
