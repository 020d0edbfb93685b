"""Topics, and the Redis channels that carry them."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Final, Self

import attrs

TARGET_PATTERN: Final = "^[A-Za-z0-9._/^=-]{1,64}$"
"""In the dialect of JSON Schema (ECMA-262), where `$` is nothing but the end.

ASCII on purpose: two spellings of one visible name (Unicode composed and decomposed) would be
two Redis channels, and a subscriber to the wrong one would wait for ever without an error."""

_TARGET: Final = re.compile(TARGET_PATTERN)

TARGET_RULE: Final = "1 to 64 of the letters A-Z and a-z, digits, and . - _ / ^ ="


class SubscriptionType(enum.StrEnum):
    """What a client may subscribe to."""

    STOCK = "stock"
    MARKET = "market"
    SECTOR = "sector"
    WATCHLIST = "watchlist"


class Kind(enum.StrEnum):
    """What a channel carries; the last part of its name."""

    PRICE = "price"
    ORDERBOOK = "orderbook"
    STATUS = "status"
    ALERT = "alerts"
    NOTIFICATION = "notifications"


KINDS: Final[Mapping[SubscriptionType, tuple[Kind, ...]]] = {
    SubscriptionType.STOCK: (Kind.PRICE, Kind.ORDERBOOK),
    SubscriptionType.MARKET: (Kind.STATUS,),
    SubscriptionType.SECTOR: (Kind.PRICE,),
    SubscriptionType.WATCHLIST: (Kind.PRICE,),
}
"""The kinds that each type of topic carries: one Redis channel each."""


def is_target(value: object) -> bool:
    """Whether `value` may name a target: checked before anything of it reaches Redis."""
    return isinstance(value, str) and _TARGET.fullmatch(value) is not None


@attrs.frozen(cache_hash=True)
class Topic:
    """What a subscription is to: a type and a target, such as stock 005930."""

    subscription_type: SubscriptionType = attrs.field(converter=SubscriptionType)
    target: str = attrs.field()

    @target.validator
    def _check_target(self, _attribute: object, value: object) -> None:
        if not is_target(value):
            raise ValueError(f"invalid target {value!r}: a target is {TARGET_RULE}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `type:target`, as in `stock:005930`.

        Raises ValueError with a text for people.
        """
        subscription_type, colon, target = text.partition(":")
        if not colon or subscription_type not in tuple(SubscriptionType):
            types = ", ".join(SubscriptionType)
            raise ValueError(f"{text!r} is not TYPE:TARGET with a type of {types}")
        return cls(SubscriptionType(subscription_type), target)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of publication it carries."""
        return KINDS[self.subscription_type]

    def channel(self, kind: Kind) -> str:
        """The Redis channel of one kind of publication."""
        return f"{self.subscription_type}:{self.target}:{kind}"

    def __str__(self) -> str:
        return f"{self.subscription_type}:{self.target}"


def personal_channel(kind: Kind, user_id: str) -> str:
    """The channel of what is sent to one user without a subscription (alerts, notifications)."""
    return f"{kind}:{user_id}"


def parse_channel(channel: str) -> tuple[Topic, Kind]:
    """The topic and kind that a channel carries: the inverse of `Topic.channel`.

    Raises ValueError where no topic has that channel.
    """
    topic_text, _, kind_text = channel.rpartition(":")
    topic = Topic.parse(topic_text)
    if kind_text not in topic.kinds:
        kinds = ", ".join(topic.kinds)
        raise ValueError(f"{topic} has no channel {kind_text!r}, only {kinds}")
    return topic, Kind(kind_text)
