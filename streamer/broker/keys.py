"""Names of keys and channels in Redis, shared by publishers and servers.

The braces are a hash tag: in a Redis Cluster all keys and channels of a topic are in one slot,
where one script may use them. No target can contain a brace.
"""

from __future__ import annotations

from typing import Final

from streamer.protocol.topics import SubscriptionType, parse_channel

CONTROL_CHANNEL: Final = "streamer:control:all"
"""The channel of requests to all server processes."""

REVOCATIONS_KEY: Final = "streamer:revocations"
"""The key of the sorted set of revocations, each with the time in seconds since 1970 until which it
is kept."""

_OWN_PREFIX: Final = "streamer:"
"""The beginning of the names of keys and channels that carry no topic."""

_USER_TAG: Final = f"{{{SubscriptionType.USER}:".encode()


def position_key(topic: str) -> str:
    """Return the key of the hash with a topic's position, which never expires.

    Its fields: `epoch`; `sequence`, that of the last publication; `publisher`, the process that
    published it, as HOST:PID; `was:NAME`, the epoch that some clients know as NAME.
    """
    return f"streamer:{{{topic}}}:position"


def history_key(topic: str) -> str:
    """Return the key of the Redis stream with a topic's recent publications.

    The entry of sequence N has the id `N-0` and these fields: `m`, the JSON text as it was
    published; `k`, its kind; `t`, its time in ms since 1970 by Redis' own clock.
    """
    return f"streamer:{{{topic}}}:history"


def published_key(topic: str, publisher_id: str) -> str:
    """Return the key of the hash by which a publisher's retries are recognized."""
    return f"streamer:{{{topic}}}:published:{publisher_id}"


def session_key(session_id: str) -> str:
    """Return the key of the record of a client's session, kept while it can be restored."""
    return f"streamer:session:{session_id}"


def control_channel(process_id: str) -> str:
    """Return the channel of the answers to one server process."""
    return f"streamer:control:{process_id}"


def sharded_channel(channel: str) -> str:
    """Return a channel's name in a Cluster: `{stock:005930}:price`, `{user:42}:alerts`.

    Its hash tag is that of the topic's keys; a channel of streamer's own has the same name
    everywhere. Raises ValueError where no topic has that channel.
    """
    if channel.startswith(_OWN_PREFIX):
        return channel
    topic, kind = parse_channel(channel)
    return f"{{{topic}}}:{kind}"


def plain_channel(name: bytes) -> bytes:
    """Return the channel with this name in a Cluster: the inverse of `sharded_channel`. Hot."""
    if name.startswith(_USER_TAG):
        user_id, _, kind = name[len(_USER_TAG) :].rpartition(b"}:")
        return b"%b:%b" % (kind, user_id)
    return name.translate(None, b"{}")
