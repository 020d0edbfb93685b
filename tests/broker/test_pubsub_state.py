"""The bookkeeping of subscriptions, against a Redis that carries out commands in order."""

from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamer.broker.pubsub_state import (
    CHANNELS,
    CHANNELS_PER_COMMAND,
    SHARDED_CHANNELS,
    Dialect,
    PubSubState,
)

PROBE = b"probe"
NAMES = st.sets(st.sampled_from([b"a", b"b", b"c"]))


def pubsub_state(dialect: Dialect = CHANNELS) -> PubSubState:
    """Return the state of a connection for which nothing is wanted yet."""
    return PubSubState(PROBE, dialect, refused={})


class Interleaving(RuleBasedStateMachine):
    """Channels are wanted, released, sent, answered, forbidden and lost in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[bytes, str] = {}
        self.state = PubSubState(PROBE, refused=self.refused)
        self.state.restart()
        self.sent: deque[tuple[bytes, list[bytes]]] = deque()
        """Commands that Redis has not carried out."""
        self.replies: deque[bytes | None] = deque()
        """Confirmed channels, and None for a refused command, that have not been read."""
        self.redis: set[bytes] = set()
        self.forbidden: set[bytes] = set()
        self.wanted: set[bytes] = set()
        self.wanted_since_restart: set[bytes] = set()

    @rule(channels=NAMES)
    def want(self, channels: set[bytes]) -> None:
        """Channels are wanted."""
        self.wanted |= channels
        self.state.want(channels)

    @rule(channels=NAMES)
    def release(self, channels: set[bytes]) -> None:
        """Channels are wanted no longer."""
        self.wanted -= channels
        self.wanted_since_restart -= channels
        self.state.release(channels)

    @rule(channels=NAMES)
    def change_permissions(self, channels: set[bytes]) -> None:
        """Redis forbids these channels and no others from now on."""
        self.forbidden = channels

    @rule()
    def retry(self) -> None:
        """Refused channels are tried again."""
        self.state.retry_refused()

    @rule()
    def lose_the_connection(self) -> None:
        """Redis forgets everything, and what was under way is lost."""
        self.sent.clear()
        self.replies.clear()
        self.redis.clear()
        self.wanted_since_restart = self.wanted.copy()
        self.state.restart()

    @rule()
    def send(self) -> None:
        """The writer sends the next commands."""
        for command, *channels in self.state.next_commands():
            assert channels
            self.sent.append((command, channels))

    @rule()
    def carry_out(self) -> None:
        """Redis carries out the oldest command, or refuses it as a whole."""
        if self.sent:
            command, channels = self.sent.popleft()
            if command == b"SUBSCRIBE" and not self.forbidden.isdisjoint(channels):
                self.replies.append(None)
                return
            change = {b"SUBSCRIBE": self.redis.add, b"UNSUBSCRIBE": self.redis.discard}[command]
            for channel in channels:
                change(channel)
                self.replies.append(channel)

    @rule()
    def read(self) -> None:
        """The reader takes the oldest reply."""
        if self.replies:
            channel = self.replies.popleft()
            if channel is None:
                for refused in self.state.refuse("forbidden") or ():
                    assert refused in self.refused
                return
            assert self.state.confirm(channel)
            if self.state.is_confirmed(channel):
                self.refused.pop(channel, None)

    @rule()
    def settle(self) -> None:
        """When all is answered, Redis holds just what is wanted, apart from what it forbids."""
        while self.state.has_commands or self.sent or self.replies:
            self.send()
            while self.sent:
                self.carry_out()
            while self.replies:
                self.read()
        assert self.redis == {*self.wanted, PROBE} - self.refused.keys()
        assert self.refused.keys() <= self.wanted
        assert all(map(self.state.is_confirmed, self.redis))
        assert self.state.next_commands() == []
        self.retry()
        if not self.forbidden:
            assert self.state.has_commands == bool(self.refused)

    @invariant()
    def a_confirmed_channel_is_subscribed(self) -> None:
        """No command about a confirmed channel is under way."""
        for channel in (b"a", b"b", b"c", PROBE):
            if self.state.is_confirmed(channel):
                assert channel in self.redis
                assert all(channel not in channels for _, channels in self.sent)

    @invariant()
    def the_probe_channel_is_last(self) -> None:
        """Its confirmation implies that of every channel that was wanted at the restart."""
        if self.state.is_confirmed(PROBE):
            assert self.wanted_since_restart <= self.redis | self.refused.keys()


TestInterleaving = Interleaving.TestCase


def confirm_all(state: PubSubState, commands: list[tuple[bytes, ...]]) -> None:
    """Confirm every channel of these commands."""
    for _, *channels in commands:
        for channel in channels:
            assert state.confirm(channel)


def test_many_channels_are_sent_in_commands_of_bounded_size() -> None:
    """Ten thousand channels are twenty commands; the probe's own comes when they are confirmed."""
    state = pubsub_state()
    channels = {b"%d" % number for number in range(20 * CHANNELS_PER_COMMAND)}
    state.want(channels)
    state.restart()
    commands = []
    while batch := state.next_commands():
        commands += batch
    assert len(commands) == 20
    assert max(map(len, commands)) <= CHANNELS_PER_COMMAND + 1
    assert {channel for _, *named in commands for channel in named} == channels
    confirm_all(state, commands)
    assert state.next_commands() == [(b"SUBSCRIBE", PROBE)]


def test_a_refused_command_is_sent_again_one_by_one() -> None:
    """Only the forbidden channel of a refused command is refused; the others are confirmed."""
    refused: dict[bytes, str] = {}
    state = PubSubState(PROBE, refused=refused)
    state.want([b"a", b"b", b"c"])
    state.restart()
    ((_, *channels),) = state.next_commands()
    assert sorted(channels) == [b"a", b"b", b"c"]
    assert state.refuse("NOPERM") == []
    commands = state.next_commands()
    assert sorted(commands) == [(b"SUBSCRIBE", name) for name in (b"a", b"b", b"c")]
    for _, channel in commands:
        if channel == b"b":
            assert state.refuse("NOPERM b") == [b"b"]
        else:
            assert state.confirm(channel)
    assert refused == {b"b": "NOPERM b"}
    assert state.next_commands() == [(b"SUBSCRIBE", PROBE)]


def test_a_refused_channel_is_alone_on_the_next_connection() -> None:
    """A channel that was refused does not have the command of the others refused again."""
    state = PubSubState(PROBE, refused={b"b": "NOPERM"})
    state.want([b"a", b"b"])
    state.restart()
    assert state.next_commands() == [(b"SUBSCRIBE", b"a"), (b"SUBSCRIBE", b"b")]


def test_a_refusal_of_the_probe_or_of_an_unsubscribe_is_fatal() -> None:
    """Without its probe, or with channels it cannot leave, a connection is of no use."""
    state = pubsub_state()
    state.restart()
    assert state.next_commands() == [(b"SUBSCRIBE", PROBE)]
    assert state.refuse("NOPERM") is None
    assert state.refuse("NOPERM") is None  # and no command is outstanding
    state.restart()
    state.want([b"a"])
    confirm_all(state, state.next_commands())
    state.release([b"a"])
    assert state.next_commands() == [(b"UNSUBSCRIBE", b"a")]
    assert state.refuse("NOPERM") is None


def test_a_channel_wanted_back_in_time_causes_no_traffic() -> None:
    """A channel that is released and wanted again before the next write stays subscribed."""
    state = pubsub_state()
    state.want([b"a"])
    state.next_commands()
    state.release([b"a"])
    state.want([b"a"])
    assert state.next_commands() == []


def test_an_old_answer_confirms_nothing() -> None:
    """After subscribe, unsubscribe, subscribe the third reply confirms a channel."""
    state = pubsub_state()
    for change in (state.want, state.release, state.want):
        change([b"a"])
        state.next_commands()
    assert state.confirm(PROBE)
    confirmed = []
    for _ in range(3):
        state.confirm(b"a")
        confirmed.append(state.is_confirmed(b"a"))
    assert confirmed == [False, False, True]


def test_sharded_channels_are_sent_by_the_slot() -> None:
    """A command about two slots would be refused."""
    state = pubsub_state(SHARDED_CHANNELS)
    state.want({b"{stock:a}:price", b"{stock:a}:orderbook", b"{stock:b}:price", b"{alerts:u}"})
    state.restart()
    commands = state.next_commands()
    assert {word for word, *_ in commands} == {b"SSUBSCRIBE"}
    assert sorted(sorted(channels) for _, *channels in commands) == [
        [b"{alerts:u}"],
        [b"{stock:a}:orderbook", b"{stock:a}:price"],
        [b"{stock:b}:price"],
    ]
    confirm_all(state, commands)
    assert state.next_commands() == [(b"SSUBSCRIBE", PROBE)]
    state.release([b"{stock:a}:price", b"{stock:b}:price"])
    assert sorted(state.next_commands()) == [
        (b"SUNSUBSCRIBE", b"{stock:a}:price"),
        (b"SUNSUBSCRIBE", b"{stock:b}:price"),
    ]


def test_an_unsolicited_answer_is_told_from_the_others() -> None:
    """A Cluster unsubscribes by itself from what moves away."""
    state = pubsub_state(SHARDED_CHANNELS)
    state.want([b"a"])
    state.next_commands()
    assert state.confirm(b"a")
    assert not state.confirm(b"a")
