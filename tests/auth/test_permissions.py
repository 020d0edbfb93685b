"""Permissions: which topics a client may have, and the rule that says so.

Covers streamer.auth.identity.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.auth.identity import Identity
from streamer.auth.permissions import Decision, Permissions
from streamer.config import Settings
from streamer.protocol.patterns import TopicPattern
from streamer.protocol.topics import Topic


def user(user_id: str, *patterns: str) -> Identity:
    """A user whose token grants the patterns."""
    return Identity(user_id, patterns=tuple(map(TopicPattern.parse, patterns)))


def permissions(*public: str) -> Permissions:
    """Permissions of a server that asks for tokens."""
    return Permissions(
        Settings(auth="optional", auth_secret_file=Path("secret"), public_topics=public)
    )


def decide(identity: Identity | None, topic: str, *public: str) -> Decision:
    """Decide about one topic."""
    return permissions(*public).decide(identity, Topic.parse(topic))


@pytest.mark.parametrize("topic", ["stock:A", "market:A", "sector:A", "watchlist:A"])
def test_without_auth_all_but_topics_of_users_are_public(topic: str) -> None:
    """As it was before there were tokens."""
    decision = Permissions(Settings()).decide(None, Topic.parse(topic))
    assert decision == Decision(is_allowed=True, rule="auth is none")
    assert not Permissions(Settings()).decide(None, Topic.parse("user:A")).is_allowed


@pytest.mark.parametrize("topic", ["user:42", "watchlist:42", "watchlist:42/tech"])
def test_a_user_has_its_own(topic: str) -> None:
    """Its messages and its watchlists, whatever the token grants."""
    assert decide(user("42"), topic) == Decision(is_allowed=True, rule="the user's own")
    assert not decide(None, topic).is_allowed
    assert not decide(user("4"), topic).is_allowed
    assert not decide(user("421"), topic).is_allowed


def test_nobody_has_the_messages_of_another_user() -> None:
    """Not even by a pattern."""
    decision = decide(user("7", "user:*", "user:42"), "user:42")
    assert decision == Decision(is_allowed=False, rule="a topic user:ID is for that user alone")


def test_token_and_settings_add_up() -> None:
    """One pattern of either is enough; the rule names it."""
    identity = user("7", "stock:A", "watchlist:42/*")
    assert decide(identity, "stock:A", "market:*").rule == "token pattern stock:A"
    assert decide(identity, "watchlist:42/tech").rule == "token pattern watchlist:42/*"
    assert decide(identity, "market:KOSPI", "market:*").rule == "public_topics market:*"
    assert decide(None, "market:KOSPI", "market:*").rule == "public_topics market:*"


def test_what_no_rule_allows_is_forbidden() -> None:
    """The default is no."""
    no = Decision(is_allowed=False, rule="no rule matches")
    assert decide(user("7", "stock:A"), "stock:B", "market:*") == no
    assert decide(None, "stock:B") == no
    assert decide(user("7"), "watchlist:42") == no


def test_where_a_token_is_required_nothing_goes_without() -> None:
    """Public topics are for everybody who has a token."""
    required = Permissions(Settings(auth="required", auth_secret_file=Path("secret")))
    no = Decision(is_allowed=False, rule="auth is required: nothing without a token")
    for topic in ("stock:A", "watchlist:A", "user:A"):
        assert required.decide(None, Topic.parse(topic)) == no
    assert required.decide(user("7"), Topic.parse("stock:A")).is_allowed


def test_public_topics_are_by_default_those_of_the_market() -> None:
    """A watchlist is somebody's."""
    default = Permissions(Settings(auth="optional", auth_secret_file=Path("secret")))
    for topic in ("stock:A", "market:A", "sector:A"):
        assert default.decide(None, Topic.parse(topic)).is_allowed
    assert not default.decide(None, Topic.parse("watchlist:A")).is_allowed
