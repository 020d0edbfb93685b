"""Topics, and the Redis channels that carry them."""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Self

import attrs

MAX_TARGET_CHARACTERS: Final = 64
MAX_TARGET_BYTES: Final = 192
"""The longest target in UTF-8: 64 characters of Korean or Chinese, which take three bytes each."""

TARGET_RULE: Final = (
    f"1 to {MAX_TARGET_CHARACTERS} letters, marks, digits, punctuation or symbols and single inner"
    f' spaces, at most {MAX_TARGET_BYTES} bytes of UTF-8, without * ? [ ] {{ }} \\ "'
)

TARGET_PATTERN: Final = (
    r"^(?! )(?!.* $)(?!.*  )(?![\s\S]*\n)"
    r'[^\u0000-\u001f"*?\[\\\]{}\u007f-\u00a0\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891'
    r"\u08e2\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ud800-\uf8ff\ufdd0-\ufdef"
    r"\ufeff\ufff0-\ufffb\ufffe\uffff]{1,64}$"
)
"""The part of the rule that every JSON Schema validator can check.

Many have no `\\p{…}`, and in Python's `re`, which some use, `$` matches before a last newline. It
accepts more than the rule: unassigned characters, text that is not in NFC, more than 192 bytes.
"""

_USUAL_TARGET: Final = re.compile(r"[!#-)+->@-Z^-z|~]{1,64}")
"""Printable ASCII without the excluded characters: valid without a check of each character."""

MAX_SHARED_TOPICS: Final = 10_000
"""Topics of requests that are kept, the last ones: some 200 bytes each, a KB at most."""

_CATEGORIES: Final = ("L", "M", "Nd", "P", "S")
"""Unicode's general categories, or their first letters, of characters that a target may have."""

_EXCLUDED: Final = frozenset('*?[]{}\\"')
"""Characters special in Redis' patterns, in a Cluster's hash tags, and in JSON strings."""


class SubscriptionType(enum.StrEnum):
    """The types of topics that a client may subscribe to."""

    STOCK = "stock"
    MARKET = "market"
    SECTOR = "sector"
    WATCHLIST = "watchlist"
    USER = "user"

    @property
    def names_itself(self) -> bool:
        """Whether each message says which topic of the type it belongs to.

        A stock's and a market's messages do, in `stock_code` and `market`. A price of a sector or a
        watchlist is about any stock, and an alert does not say whose it is: the server writes the
        topic into those.
        """
        return self is SubscriptionType.STOCK or self is SubscriptionType.MARKET


class Kind(enum.StrEnum):
    """The kinds of publications; the value is the word for it in a channel's name."""

    PRICE = "price"
    ORDERBOOK = "orderbook"
    STATUS = "status"
    ALERT = "alerts"
    NOTIFICATION = "notifications"

    @property
    def is_event(self) -> bool:
        """Whether a message reports that something happened, rather than how something is now.

        Events have no last known value: one that is shown again at each subscription would look
        like another.
        """
        return self is Kind.ALERT or self is Kind.NOTIFICATION


KINDS: Final[Mapping[SubscriptionType, tuple[Kind, ...]]] = {
    SubscriptionType.STOCK: (Kind.PRICE, Kind.ORDERBOOK),
    SubscriptionType.MARKET: (Kind.STATUS,),
    SubscriptionType.SECTOR: (Kind.PRICE,),
    SubscriptionType.WATCHLIST: (Kind.PRICE,),
    SubscriptionType.USER: (Kind.ALERT, Kind.NOTIFICATION),
}
"""The kinds that each type of topic carries: one Redis channel each."""

_KIND_SETS: Final = {
    subscription_type: frozenset(kinds) for subscription_type, kinds in KINDS.items()
}

_TYPES: Final = frozenset(SubscriptionType)
_USER_KINDS: Final = frozenset(KINDS[SubscriptionType.USER])


def is_target(value: object) -> bool:
    """Whether `value` is a valid target; checked before any of it reaches Redis."""
    return target_problem(value) is None


def target_problem(value: object) -> str | None:
    """Return why `value` is not a valid target, for people; None if it is.

    Only NFC is accepted: two encodings of the same visible name would be two channels, and a
    subscriber to the wrong one would wait for ever.
    """
    if not isinstance(value, str):
        return "a target is a string"
    if _USUAL_TARGET.fullmatch(value):
        return None
    # The size first: to look at each character of a whole request's size takes 30 ms.
    if not _has_target_size(value) or not all(map(_may_be_in_target, value)):
        return f"a target is {TARGET_RULE}"
    if value != value.strip(" ") or "  " in value:
        return "a target has only single spaces, and only between other characters"
    if not unicodedata.is_normalized("NFC", value):
        return "a target is in Unicode's normalization form C (NFC)"
    return None


def _may_be_in_target(character: str) -> bool:
    return character == " " or (
        character not in _EXCLUDED and unicodedata.category(character).startswith(_CATEGORIES)
    )


def _has_target_size(text: str) -> bool:
    return (
        0 < len(text) <= MAX_TARGET_CHARACTERS
        and len(text.encode(errors="surrogatepass")) <= MAX_TARGET_BYTES
    )


def _subscription_type(value: SubscriptionType | str) -> SubscriptionType:
    # Most are members already, and the enumeration's own call takes five times as long.
    return value if type(value) is SubscriptionType else SubscriptionType(value)


@attrs.frozen(cache_hash=True)
class Topic:
    """The subject of a subscription: a type and a target, such as stock 005930."""

    subscription_type: SubscriptionType = attrs.field(converter=_subscription_type)
    target: str = attrs.field()

    @target.validator
    def _check_target(self, _attribute: object, value: object) -> None:
        problem = target_problem(value)
        if problem is not None:
            raise ValueError(f"invalid target {value!r}: {problem}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `type:target`, as in `stock:005930`: split at the first colon.

        Raises ValueError with a text for people.
        """
        subscription_type, colon, target = text.partition(":")
        if not colon or subscription_type not in _TYPES:
            types = ", ".join(SubscriptionType)
            raise ValueError(f"{text!r} is not TYPE:TARGET with a type of {types}")
        return cls(SubscriptionType(subscription_type), target)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of publication it carries."""
        return KINDS[self.subscription_type]

    @property
    def kind_set(self) -> frozenset[Kind]:
        """The same as a set: one object for all topics of a type."""
        return _KIND_SETS[self.subscription_type]

    @property
    def is_personal(self) -> bool:
        """Whether it carries messages to one user."""
        return self.subscription_type is SubscriptionType.USER

    @property
    def key(self) -> str | None:
        """The name that each of its messages must carry; None where that may differ."""
        return self.target if self.subscription_type.names_itself else None

    def channel(self, kind: Kind) -> str:
        """The Redis channel of one kind of publication: `stock:005930:price`, `alerts:42`."""
        if self.subscription_type is SubscriptionType.USER:
            return f"{kind}:{self.target}"
        return f"{self.subscription_type}:{self.target}:{kind}"

    @property
    def channels(self) -> list[str]:
        """The Redis channels of all its kinds."""
        return [self.channel(kind) for kind in self.kinds]

    def __str__(self) -> str:
        return f"{self.subscription_type}:{self.target}"


@lru_cache(maxsize=MAX_SHARED_TOPICS)
def shared_topic(subscription_type: SubscriptionType, target: str) -> Topic:
    """Return the topic, the same object for all who ask for it: its target is checked once.

    Raises ValueError for an invalid target, and TypeError for one that has no hash.
    """
    return Topic(subscription_type, target)


def parse_channel(channel: str) -> tuple[Topic, Kind]:
    """Return the topic and kind that a channel carries: the inverse of `Topic.channel`.

    Raises ValueError if no topic has that channel.
    """
    first, _, user_id = channel.partition(":")
    if first in _USER_KINDS:
        return Topic(SubscriptionType.USER, user_id), Kind(first)
    topic_text, _, last = channel.rpartition(":")
    topic = Topic.parse(topic_text)
    if last not in topic.kinds or topic.subscription_type is SubscriptionType.USER:
        raise ValueError(f"{topic} has no channel {channel!r}, only {' and '.join(topic.channels)}")
    return topic, Kind(last)
