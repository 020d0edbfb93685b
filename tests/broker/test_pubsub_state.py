"""The bookkeeping of subscriptions, against a Redis that carries out commands in order."""

from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamer.broker.pubsub_state import CHANNELS_PER_COMMAND, SHARDED_CHANNELS, PubSubState

OWN = b"own"
CHANNELS = st.sets(st.sampled_from([b"a", b"b"]))


class Interleaving(RuleBasedStateMachine):
    """Whatever is wanted, released, sent, answered and lost in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.subscriptions = PubSubState(OWN)
        self.subscriptions.restart()
        self.sent: deque[tuple[bytes, bytes]] = (
            deque()
        )  # (command, channel) that Redis has not carried out
        self.redis: set[bytes] = set()
        self.wanted: set[bytes] = set()
        self.wanted_since_restart: set[bytes] = set()

    @rule(channels=CHANNELS)
    def want(self, channels: set[bytes]) -> None:
        """Somebody asks."""
        self.wanted |= channels
        self.subscriptions.want(channels)

    @rule(channels=CHANNELS)
    def release(self, channels: set[bytes]) -> None:
        """Nobody asks any longer."""
        self.wanted -= channels
        self.wanted_since_restart -= channels
        self.subscriptions.release(channels)

    @rule()
    def lose_the_connection(self) -> None:
        """Redis forgets all, and what was under way is gone."""
        self.sent.clear()
        self.redis.clear()
        self.wanted_since_restart = self.wanted.copy()
        self.subscriptions.restart()

    @rule()
    def send(self) -> None:
        """The writer comes round."""
        for command, *channels in self.subscriptions.next_commands():
            assert channels
            self.sent.extend((command, channel) for channel in channels)

    @rule()
    def answer(self) -> None:
        """Redis carries out the oldest command and the reader hears of it."""
        if self.sent:
            command, channel = self.sent.popleft()
            change = {b"SUBSCRIBE": self.redis.add, b"UNSUBSCRIBE": self.redis.remove}[command]
            change(channel)  # KeyError: released what was never subscribed
            self.subscriptions.answered(channel)

    @rule()
    def settle(self) -> None:
        """When all is sent and answered, Redis holds just what is wanted, all of it confirmed."""
        self.send()
        while self.sent:
            self.answer()
        assert self.redis == {*self.wanted, OWN}
        assert all(map(self.subscriptions.is_confirmed, self.redis))
        assert self.subscriptions.next_commands() == []

    @invariant()
    def what_is_confirmed_is_subscribed_and_stays_so(self) -> None:
        """A confirmation is never an old one: no command about the channel is under way."""
        for channel in (b"a", b"b", OWN):
            if self.subscriptions.is_confirmed(channel):
                assert channel in self.redis
                assert channel not in {told for _, told in self.sent}

    @invariant()
    def the_own_channel_is_last(self) -> None:
        """Its confirmation speaks for all that was wanted at the restart."""
        if self.subscriptions.is_confirmed(OWN):
            assert self.wanted_since_restart <= self.redis


TestInterleaving = Interleaving.TestCase


def test_many_channels_are_told_in_commands_of_bounded_size() -> None:
    """Ten thousand channels are twenty commands, the own channel the last word of the last."""
    subscriptions = PubSubState(OWN)
    channels = {b"%d" % number for number in range(20 * CHANNELS_PER_COMMAND)}
    subscriptions.want(channels)
    commands = []
    while batch := subscriptions.next_commands():
        commands += batch
    assert len(commands) == 20
    assert max(map(len, commands)) <= CHANNELS_PER_COMMAND + 2
    assert {channel for _, *told in commands for channel in told} == {*channels, OWN}
    assert commands[-1][-1] == OWN


def test_a_channel_wanted_back_in_time_causes_no_traffic() -> None:
    """Released and wanted again before the writer came round, a channel simply stays."""
    subscriptions = PubSubState(OWN)
    subscriptions.want([b"a"])
    subscriptions.next_commands()
    subscriptions.release([b"a"])
    subscriptions.want([b"a"])
    assert subscriptions.next_commands() == []


def test_an_old_answer_confirms_nothing() -> None:
    """After subscribe, unsubscribe, subscribe a channel is confirmed by the third answer."""
    subscriptions = PubSubState(OWN)
    for change in (subscriptions.want, subscriptions.release, subscriptions.want):
        change([b"a"])
        subscriptions.next_commands()
    confirmed = []
    for _ in range(3):
        subscriptions.answered(b"a")
        confirmed.append(subscriptions.is_confirmed(b"a"))
    assert confirmed == [False, False, True]


def test_sharded_channels_are_told_by_the_slot_and_the_own_one_last() -> None:
    """A command about two slots would be refused; what is confirmed last vouches for the rest."""
    own = b"streamer:probe:{x}"
    subscriptions = PubSubState(own, SHARDED_CHANNELS)
    channels = {b"{stock:a}:price", b"{stock:a}:orderbook", b"{stock:b}:price", b"{alerts:u}"}
    subscriptions.want(channels)
    *commands, last = subscriptions.next_commands()
    assert last == (b"SSUBSCRIBE", own)
    assert {word for word, *_ in commands} == {b"SSUBSCRIBE"}
    assert sorted(sorted(told) for _, *told in commands) == [
        [b"{alerts:u}"],
        [b"{stock:a}:orderbook", b"{stock:a}:price"],
        [b"{stock:b}:price"],
    ]
    subscriptions.release([b"{stock:a}:price", b"{stock:b}:price"])
    assert sorted(subscriptions.next_commands()) == [
        (b"SUNSUBSCRIBE", b"{stock:a}:price"),
        (b"SUNSUBSCRIBE", b"{stock:b}:price"),
    ]


def test_an_answer_that_nobody_asked_for_is_told_from_the_others() -> None:
    """A Cluster unsubscribes by itself from what moves away."""
    subscriptions = PubSubState(OWN, SHARDED_CHANNELS)
    subscriptions.want([b"a"])
    subscriptions.next_commands()
    assert subscriptions.answered(b"a")
    assert not subscriptions.answered(b"a")
