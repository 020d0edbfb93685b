"""What is wanted of Redis, and how much of it Redis was told and has confirmed."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import attrs

CHANNELS_PER_COMMAND: Final = 500
"""Channels in one SUBSCRIBE: enough that a big resubscription is few commands, few enough that
Redis, which runs one command at a time, serves others between them."""


@attrs.frozen
class Dialect:
    """How to subscribe: the same in other words, and for sharded channels by the slot."""

    subscribe: bytes
    unsubscribe: bytes
    publish: str
    message: bytes
    """What the server calls a message of a channel."""
    sharded: bool

    def commands(self, word: bytes, channels: Iterable[bytes]) -> list[tuple[bytes, ...]]:
        """The commands that say `word` of `channels`, in that order."""
        groups: dict[bytes, list[bytes]] = {}
        for channel in channels:
            # The channels of one command have to be in one slot: with one hash tag they are.
            tag = channel.partition(b"}")[0] if self.sharded else b""
            groups.setdefault(tag, []).append(channel)
        return [(word, *group) for group in groups.values()]


CHANNELS: Final = Dialect(b"SUBSCRIBE", b"UNSUBSCRIBE", "PUBLISH", b"message", sharded=False)
SHARDED_CHANNELS: Final = Dialect(
    b"SSUBSCRIBE", b"SUNSUBSCRIBE", "SPUBLISH", b"smessage", sharded=True
)
"""Of a Cluster, since Redis 7: published within the shard that has the slot, not to all servers."""


class PubSubState:
    """Bookkeeping between those who want channels and the connection that subscribes to them.

    No I/O: `next_commands` says what to send, `answered` takes what came back. `own_channel` is
    always wanted, and told to Redis after all the rest. Redis answers in order, so once it is
    confirmed, so is everything that was wanted when the connection was made.
    """

    def __init__(self, own_channel: bytes, dialect: Dialect = CHANNELS) -> None:
        self._dialect = dialect
        self.wanted: set[bytes] = set()
        self._own_channel = own_channel
        self._told: set[bytes] = set()
        # Always the channels that are either wanted or told, not both: who wants a channel back
        # before the writer came to release it causes no traffic.
        self._untold: set[bytes] = set()
        # Answers outstanding per channel. They are counted because after subscribe, unsubscribe,
        # subscribe the first answer is not yet the truth.
        self._unanswered: Counter[bytes] = Counter()

    def want(self, channels: Iterable[bytes]) -> None:
        """Add to what is wanted."""
        added = set(channels) - self.wanted
        self.wanted |= added
        self._untold ^= added

    def release(self, channels: Iterable[bytes]) -> None:
        """Take away from what is wanted."""
        removed = self.wanted.intersection(channels)
        self.wanted -= removed
        self._untold ^= removed

    def restart(self) -> None:
        """The connection is gone or new: Redis knows of nothing."""
        self._told.clear()
        self._unanswered.clear()
        self._untold = self.wanted.copy()

    def next_commands(self) -> list[tuple[bytes, ...]]:
        """What to subscribe to and to unsubscribe from, told from now on; [] when all is told."""
        count = min(CHANNELS_PER_COMMAND, len(self._untold))
        channels = [self._untold.pop() for _ in range(count)]
        subscribe = [channel for channel in channels if channel in self.wanted]
        unsubscribe = [channel for channel in channels if channel not in self.wanted]
        if not self._untold and self._own_channel not in self._told:
            subscribe.append(self._own_channel)
        self._told.update(subscribe)
        self._told.difference_update(unsubscribe)
        self._unanswered.update(subscribe + unsubscribe)
        dialect = self._dialect
        return [
            *dialect.commands(dialect.subscribe, subscribe),
            *dialect.commands(dialect.unsubscribe, unsubscribe),
        ]

    def answered(self, channel: bytes) -> bool:
        """Redis has carried out one command about `channel`; False: nobody had asked it."""
        if channel not in self._unanswered:
            return False
        self._unanswered[channel] -= 1
        if not self._unanswered[channel]:
            del self._unanswered[channel]
        return True

    def is_confirmed(self, channel: bytes) -> bool:
        """Redis was told to subscribe to `channel` and has answered all it was told about it."""
        return channel in self._told and channel not in self._unanswered
