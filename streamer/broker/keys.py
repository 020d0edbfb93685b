"""The names of what Redis has for a topic, in one place for those who write and who read it.

The braces are a hash tag: in a Redis Cluster all keys and channels of a topic are in one slot,
where one script may use them. No target can contain a brace.
"""

from __future__ import annotations

from typing import Final

from streamer.protocol.topics import SubscriptionType, parse_channel

_USER_TAG: Final = f"{{{SubscriptionType.USER}:".encode()

EPOCH_FIELD: Final = "epoch"
SEQUENCE_FIELD: Final = "sequence"
"""Fields of the position: the epoch, and the sequence of the last publication in it."""

TEXT_FIELD: Final = "m"
TIME_FIELD: Final = "t"
KIND_FIELD: Final = "k"
"""Fields of an entry of the history: the JSON text as it was published, when (Redis' own clock, ms
since 1970), and its kind."""


def position_key(topic: str) -> str:
    """Of the hash that says where a topic's stream stands. It never expires."""
    return f"streamer:{{{topic}}}:position"


def history_key(topic: str) -> str:
    """Of the stream of a topic's recent publications; the id of sequence N is `N-0`."""
    return f"streamer:{{{topic}}}:history"


def published_key(topic: str, publisher_id: str) -> str:
    """Of the hash by which one publisher's retries are told from new publications."""
    return f"streamer:{{{topic}}}:published:{publisher_id}"


def session_key(session_id: str) -> str:
    """Of what is kept of a client's session, as JSON, while it can be restored."""
    return f"streamer:session:{session_id}"


def sharded_channel(channel: str) -> str:
    """The name in a Cluster of a topic's channel: `{stock:005930}:price`, `{user:42}:alerts`.

    Its hash tag is that of the topic's keys. Raises ValueError where no topic has that channel.
    """
    topic, kind = parse_channel(channel)
    return f"{{{topic}}}:{kind}"


def plain_channel(name: bytes) -> bytes:
    """The channel whose name in a Cluster this is: the inverse of `sharded_channel`, and hot."""
    if name.startswith(_USER_TAG):
        user_id, _, kind = name[len(_USER_TAG) :].rpartition(b"}:")
        return b"%b:%b" % (kind, user_id)
    return name.translate(None, b"{}")
