"""The names of what is kept in Redis for a topic, in one place for who writes and who reads it.

The braces are a hash tag: in a Redis Cluster all keys of a topic are in one slot, where one script
may use them. No target can contain a brace.
"""

from __future__ import annotations

from typing import Final

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
