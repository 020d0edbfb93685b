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
_NO_TOKEN: Final = Decision(is_allowed=False, rule="auth is required: nothing without a token")
_NO_USER: Final = Decision(
    is_allowed=False, rule="topics of users are for identified users, and auth is none"
)
_ANOTHERS: Final = Decision(is_allowed=False, rule="a topic user:ID is for that user alone")
_NO_RULE: Final = Decision(is_allowed=False, rule="no rule matches")


class Permissions:
    """Decides by the user, the patterns of the token, and the setting `public_topics`.

    The patterns of both add up; what none allows is forbidden. No pattern allows the topic of
    another user.
    """

    def __init__(self, settings: Settings) -> None:
        self._is_off = settings.auth == "none"
        self._is_required = settings.auth == "required"
        self._public = tuple(map(TopicPattern.parse, settings.public_topics))

    def decide(self, identity: Identity | None, topic: Topic) -> Decision:
        """Decide whether a client may subscribe to a topic, restore it, and read its history.

        `identity` is None for a client without a token.
        """
        is_personal = topic.subscription_type is SubscriptionType.USER
        if self._is_off:
            return _NO_USER if is_personal else _EVERYTHING
        if identity is None and self._is_required:
            return _NO_TOKEN
        rule = None if identity is None else _granting_rule(identity, topic)
        if rule is None and (pattern := _matching(self._public, topic)) is not None:
            rule = f"public_topics {pattern}"
        if rule is not None:
            return Decision(is_allowed=True, rule=rule)
        return _ANOTHERS if is_personal else _NO_RULE


def _granting_rule(identity: Identity, topic: Topic) -> str | None:
    """Return the rule by which a topic is the user's own, or granted by the token."""
    if _is_own(identity.user_id, topic):
        return "the user's own"
    if topic.subscription_type is SubscriptionType.USER:
        return None  # no pattern of a token gives the topic of another user
    pattern = _matching(identity.patterns, topic)
    return None if pattern is None else f"token pattern {pattern}"


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
