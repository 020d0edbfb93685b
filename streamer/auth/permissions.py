"""Permissions: the topics that a client may have, and the rule that decides.

The check never waits, so a topic is checked and subscribed to in one step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from streamer.auth.identity import Identity
from streamer.config import Settings
from streamer.protocol.patterns import TopicPattern
from streamer.protocol.topics import SubscriptionType, Topic


@attrs.frozen
class Decision:
    """Whether a client may have a topic, and the rule that decided, for people."""

    is_allowed: bool
    rule: str


_EVERYTHING: Final = Decision(is_allowed=True, rule="auth is none")
_NO_USER: Final = Decision(
    is_allowed=False, rule="topics of users are for identified users, and auth is none"
)
_OWN: Final = Decision(is_allowed=True, rule="the user's own")
_ANOTHERS: Final = Decision(is_allowed=False, rule="a topic user:ID is for that user alone")
_NO_RULE: Final = Decision(is_allowed=False, rule="no rule matches")


class Permissions:
    """Decides by the user, the patterns of the token, and the setting `public_topics`.

    The patterns of both add up; what none allows is forbidden. No pattern allows the topic of
    another user.
    """

    def __init__(self, settings: Settings) -> None:
        self._is_off = settings.auth == "none"
        self._public = tuple(map(TopicPattern.parse, settings.public_topics))

    def decide(self, identity: Identity | None, topic: Topic) -> Decision:
        """Decide whether a client may subscribe to a topic, restore it, and read its history.

        `identity` is None for a client without a token.
        """
        is_personal = topic.subscription_type is SubscriptionType.USER
        if self._is_off:
            return _NO_USER if is_personal else _EVERYTHING
        if identity is not None and _is_own(identity.user_id, topic):
            return _OWN
        if is_personal:
            return _ANOTHERS
        if identity is not None and (pattern := _matching(identity.patterns, topic)) is not None:
            return Decision(is_allowed=True, rule=f"token pattern {pattern}")
        if (pattern := _matching(self._public, topic)) is not None:
            return Decision(is_allowed=True, rule=f"public_topics {pattern}")
        return _NO_RULE


def _is_own(user_id: str, topic: Topic) -> bool:
    match topic.subscription_type:
        case SubscriptionType.USER:
            return topic.target == user_id
        case SubscriptionType.WATCHLIST:
            return topic.target == user_id or topic.target.startswith(f"{user_id}/")
        case _:
            return False


def _matching(patterns: Iterable[TopicPattern], topic: Topic) -> TopicPattern | None:
    return next((pattern for pattern in patterns if pattern.matches(topic)), None)
