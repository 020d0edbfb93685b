"""Permissions: the topics that a client may subscribe to.

The check never waits, so a topic is checked and subscribed to in one step. Clients have no identity
yet: every topic is public, except those of users.
"""

from __future__ import annotations

from streamer.protocol.topics import SubscriptionType, Topic


def may_have(topic: Topic) -> bool:
    """Whether a client may subscribe to the topic, restore it, and recover its missed messages."""
    return topic.subscription_type is not SubscriptionType.USER
