"""The state of one pub/sub connection: wanted channels, commands sent, and answers of Redis."""

from collections import Counter, deque
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Final

import attrs

CHANNELS_PER_COMMAND: Final = 500
"""Channels in one SUBSCRIBE: a large resubscription needs few commands, and Redis, which runs one
command at a time, still serves other clients between them."""


@attrs.frozen
class Dialect:
    """The commands and replies of one kind of channel: plain, or sharded by slot."""

    subscribe: bytes
    unsubscribe: bytes
    publish: str
    message: bytes
    """First word of a message."""
    confirmations: frozenset[bytes]
    """First words of the replies to `subscribe` and `unsubscribe`."""
    sharded: bool

    def group(self, channels: Iterable[bytes]) -> Collection[Collection[bytes]]:
        """Divide channels into those that one command may name, in their order."""
        groups: dict[bytes, list[bytes]] = {}
        for channel in channels:
            # The channels of one command have to be in one slot: with one hash tag they are.
            tag = channel.partition(b"}")[0] if self.sharded else b""
            groups.setdefault(tag, []).append(channel)
        return groups.values()


CHANNELS: Final = Dialect(
    b"SUBSCRIBE",
    b"UNSUBSCRIBE",
    "PUBLISH",
    b"message",
    frozenset({b"subscribe", b"unsubscribe"}),
    sharded=False,
)
SHARDED_CHANNELS: Final = Dialect(
    b"SSUBSCRIBE",
    b"SUNSUBSCRIBE",
    "SPUBLISH",
    b"smessage",
    frozenset({b"ssubscribe", b"sunsubscribe"}),
    sharded=True,
)
"""Channels of a Cluster since Redis 7, published within the shard of their slot."""


@attrs.define
class _Sent:
    """A command without all of its replies."""

    word: bytes
    channels: Collection[bytes]
    confirmations_due: int


class PubSubState:
    """Tracks the wanted channels and the commands and replies that subscribe to them.

    No I/O: `next_commands` returns what to send; `confirm` and `refuse` take the replies, which
    come in the order of the commands. Redis refuses a SUBSCRIBE as a whole where a user may not
    read one of its channels, so the channels of a refused command are sent again one by one.

    `probe_channel` is always wanted. It is sent once every channel that was wanted at the restart
    is confirmed or refused, so its own confirmation implies theirs.
    """

    def __init__(
        self, probe_channel: bytes, dialect: Dialect = CHANNELS, *, refused: dict[bytes, str]
    ) -> None:
        """`refused` maps the wanted channels that Redis refuses to its reason; kept up to date."""
        self._dialect = dialect
        self._probe_channel = probe_channel
        self._refused = refused
        self.wanted: set[bytes] = set()
        self._subscribed: set[bytes] = set()
        """Channels that are subscribed once Redis has carried out all commands sent."""
        # Always the channels that are either wanted or subscribed, not both, without those in
        # `_single` and `_refused`: a channel that is wanted again before the writer has
        # unsubscribed from it causes no traffic.
        self._unsent: set[bytes] = set()
        self._single: dict[bytes, None] = {}
        """Channels to subscribe to with a command of their own."""
        self._sent: deque[_Sent] = deque()
        # Replies outstanding per channel. They are counted because after subscribe, unsubscribe,
        # subscribe the first reply is out of date.
        self._unanswered: Counter[bytes] = Counter()
        self._unsettled: set[bytes] = set()
        """Channels that were wanted at the restart and are neither confirmed nor refused."""

    def want(self, channels: Iterable[bytes]) -> None:
        """Add to the wanted channels."""
        added = set(channels) - self.wanted
        self.wanted |= added
        self._unsent ^= added

    def release(self, channels: Iterable[bytes]) -> None:
        """Remove from the wanted channels."""
        removed = self.wanted.intersection(channels)
        self.wanted -= removed
        self._unsettled -= removed
        for channel in removed:
            was_refused = self._refused.pop(channel, None) is not None
            was_single = channel in self._single
            self._single.pop(channel, None)
            if channel in self._subscribed or not (was_refused or was_single):
                self._unsent ^= {channel}

    def restart(self) -> None:
        """Forget the connection: it is lost or new, and has no subscriptions."""
        self._subscribed.clear()
        self._unanswered.clear()
        self._sent.clear()
        # A channel that was refused would make Redis refuse its whole command again.
        self._single = {channel: None for channel in self.wanted if channel in self._refused}
        self._unsent = self.wanted - self._single.keys()
        self._unsettled = self.wanted.copy()

    def retry_refused(self) -> None:
        """Try the refused channels again: permissions may have changed."""
        self._single |= {
            channel: None
            for channel in self.wanted & self._refused.keys()
            if channel not in self._subscribed
        }

    @property
    def has_commands(self) -> bool:
        """Whether `next_commands` would return any."""
        return bool(self._unsent or self._single or self._probe_is_due)

    @property
    def _probe_is_due(self) -> bool:
        return not self._unsettled and self._probe_channel not in self._subscribed

    def next_commands(self) -> list[tuple[bytes, ...]]:
        """Return the next commands to send, a bounded number, and count them as sent."""
        dialect = self._dialect
        count = min(CHANNELS_PER_COMMAND, len(self._unsent))
        channels = [self._unsent.pop() for _ in range(count)]
        subscribe = [channel for channel in channels if channel in self.wanted]
        unsubscribe = [channel for channel in channels if channel not in self.wanted]
        single = list(islice(self._single, CHANNELS_PER_COMMAND))
        for channel in single:
            del self._single[channel]
        if self._probe_is_due:
            single.append(self._probe_channel)
        self._subscribed.update(subscribe, single)
        self._subscribed.difference_update(unsubscribe)
        sent = [
            *((dialect.subscribe, group) for group in dialect.group(subscribe)),
            *((dialect.subscribe, (channel,)) for channel in single),
            *((dialect.unsubscribe, group) for group in dialect.group(unsubscribe)),
        ]
        self._unanswered.update(channels + single)
        self._sent.extend(_Sent(word, group, len(group)) for word, group in sent)
        return [(word, *group) for word, group in sent]

    def confirm(self, channel: bytes) -> bool:
        """Take a confirmation of one channel; False where it answers no command."""
        if channel not in self._unanswered:
            return False
        self._sent[0].confirmations_due -= 1
        if not self._sent[0].confirmations_due:
            self._sent.popleft()
        if self._count_answer(channel):
            self._unsettled.discard(channel)
        return True

    def refuse(self, reason: str) -> Collection[bytes] | None:
        """Take an error reply, with its reason, to the oldest command.

        Returns the channel that it newly refuses, if there is one. None means that the connection
        is unusable: the command was no SUBSCRIBE, or it named the probe's channel.
        """
        if not self._sent:
            return None
        command = self._sent.popleft()
        if command.word != self._dialect.subscribe or self._probe_channel in command.channels:
            return None
        refused = []
        for channel in command.channels:
            if not self._count_answer(channel):
                continue  # the answer to a later command for it counts
            self._subscribed.discard(channel)
            if channel not in self.wanted:
                self._unsent.discard(channel)
            elif len(command.channels) > 1:
                self._single[channel] = None
            else:
                self._unsettled.discard(channel)
                if channel not in self._refused:
                    refused.append(channel)
                self._refused[channel] = reason
        return refused

    def _count_answer(self, channel: bytes) -> bool:
        """Count one reply about a channel; return whether no other is outstanding."""
        self._unanswered[channel] -= 1
        if self._unanswered[channel]:
            return False
        del self._unanswered[channel]
        return True

    def is_confirmed(self, channel: bytes) -> bool:
        """Whether Redis holds the subscription and no command about the channel is under way."""
        return channel in self._subscribed and channel not in self._unanswered
