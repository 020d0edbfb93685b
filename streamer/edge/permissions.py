"""Which topics a client may have.

The answer never waits, so a topic is asked for and subscribed to in one step. There is no identity
yet: everything is public but what is sent to a user.
"""

from __future__ import annotations

from streamer.protocol.topics import SubscriptionType, Topic


def may_have(topic: Topic) -> bool:
    """Whether a client may subscribe to the topic, restore it, and be sent what it missed of it."""
    return topic.subscription_type is not SubscriptionType.USER
