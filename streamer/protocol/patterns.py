"""Patterns of topics, as in tokens and settings: `stock:005930`, `stock:*`, `watchlist:42/*`."""

from __future__ import annotations

from typing import Final, Self

import attrs

from streamer.protocol.topics import SubscriptionType, Topic, target_problem

_WILDCARD: Final = "*"
_TYPES: Final = frozenset(SubscriptionType)


@attrs.frozen
class TopicPattern:
    """A type, and a target in which a last `*` stands for any rest."""

    subscription_type: SubscriptionType
    target: str
    """The whole target; if `is_prefix`, its beginning, which may be empty."""
    is_prefix: bool

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `TYPE:TARGET`, split at the first colon.

        Raises ValueError with a text for people.
        """
        if not isinstance(text, str):
            raise ValueError("a pattern is a string such as stock:*")  # noqa: TRY004 - one error
        subscription_type, colon, target = text.partition(":")
        if not colon or subscription_type not in _TYPES:
            types = ", ".join(SubscriptionType)
            raise ValueError(f"{text!r} is not TYPE:TARGET with a type of {types}")
        is_prefix = target.endswith(_WILDCARD)
        target = target.removesuffix(_WILDCARD)
        if _WILDCARD in target:
            raise ValueError(f"{text!r} has a * that is not at its end")
        # With a character more, since a target may not end with a space but its beginning may.
        problem = target_problem(f"{target}x" if is_prefix else target)
        if problem is not None:
            raise ValueError(f"{text!r} can match no topic: {problem}")
        return cls(SubscriptionType(subscription_type), target, is_prefix)

    def matches(self, topic: Topic) -> bool:
        """Whether the pattern stands for the topic."""
        if topic.subscription_type is not self.subscription_type:
            return False
        if self.is_prefix:
            return topic.target.startswith(self.target)
        return topic.target == self.target

    def __str__(self) -> str:
        wildcard = _WILDCARD if self.is_prefix else ""
        return f"{self.subscription_type}:{self.target}{wildcard}"
