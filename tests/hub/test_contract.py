"""The contract of `sequence`, `previous`, `gap` and `snapshot`, in every order of events.

Hypothesis plays source, flush loop, clients and their sockets, one step at a time: a flush is held
up between any two writes while clients come, go, subscribe, unsubscribe, stall and read on, and
while more is published. `tests.hub.world` checks what each client receives. A failure prints the
steps that lead to it and a line that replays it.
"""
# ruff: noqa: D102 - the name of a rule says what happens

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from streamer.protocol.messages import Mode
from streamer.protocol.topics import Kind, SubscriptionType, Topic
from tests.hub.world import LINGER_SECONDS, TOPICS, Client, Options, World

ALL_KINDS = frozenset(Kind)

KINDS = st.sampled_from(
    [ALL_KINDS, ALL_KINDS, frozenset({Kind.PRICE}), frozenset({Kind.ORDERBOOK})]
)
OPTIONS = st.one_of(
    st.builds(Options, st.just(Mode.LATEST), KINDS, st.sampled_from([0.0, 0.0, 0.0, 0.5])),
    st.builds(Options, st.just(Mode.ALL), KINDS, st.just(0.0)),
)
PUBLICATIONS = st.sampled_from([(topic, kind) for topic in TOPICS for kind in topic.kinds])
SIZES = st.sampled_from([0, 0, 100, 1500, 6000])

MAX_CLIENTS = 5
CLIENTS = st.integers(0, MAX_CLIENTS - 1)


def _someone(machine: ContractMachine) -> bool:
    return bool(machine.world.clients)


class ContractMachine(RuleBasedStateMachine):
    """What the source, the clients and the event loop may do to a hub."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def _client(self, number: int) -> Client:
        return self.world.clients[number % len(self.world.clients)]

    @precondition(lambda self: len(self.world.clients) < MAX_CLIENTS)
    @rule(
        indirect=st.sampled_from([False, False, True]),
        max_queued_bytes=st.sampled_from([1 << 20, 1 << 20, 8000]),
    )
    def connect(self, indirect: bool, max_queued_bytes: int) -> None:
        self.world.connect(indirect=indirect, max_queued_bytes=max_queued_bytes)

    @precondition(_someone)
    @rule(
        client=CLIENTS,
        topics=st.sampled_from([TOPICS[:1], TOPICS[:2], TOPICS[1:2], TOPICS[2:3], TOPICS[3:]]),
        options=OPTIONS,
    )
    def subscribe(self, client: int, topics: tuple[Topic, ...], options: Options) -> None:
        if topics[0].subscription_type is not SubscriptionType.STOCK:
            options = Options(options.mode, ALL_KINDS, options.interval_seconds)
        self.world.subscribe(self._client(client), topics, options)

    @precondition(_someone)
    @rule(client=CLIENTS, topics=st.lists(st.sampled_from(TOPICS), min_size=1, unique=True))
    def unsubscribe(self, client: int, topics: list[Topic]) -> None:
        self.world.unsubscribe(self._client(client), topics)

    @rule(
        publications=st.lists(PUBLICATIONS, min_size=1, max_size=6),
        size=SIZES,
    )
    def publish(self, publications: list[tuple[Topic, Kind]], size: int) -> None:
        for topic, kind in publications:
            self.world.publish(topic, kind, size)

    @rule(topics=st.sampled_from([TOPICS, TOPICS[:1], TOPICS[2:]]))
    def lose_source(self, topics: tuple[Topic, ...]) -> None:
        self.world.lose_source(topics)

    @precondition(lambda self: not self.world.flushing)
    @rule(stretched=st.booleans())
    def flush_begin(self, stretched: bool) -> None:
        self.world.flush_begin(stretched=stretched)

    @precondition(lambda self: self.world.flushing)
    @rule()
    def flush_step(self) -> None:
        self.world.flush_step()

    @precondition(lambda self: self.world.flushing)
    @rule()
    def flush_finish(self) -> None:
        self.world.flush_finish()

    @precondition(_someone)
    @rule(client=CLIENTS, max_bytes=st.sampled_from([100, 5000, 1 << 20]))
    def read(self, client: int, max_bytes: int) -> None:
        self._client(client).read(max_bytes)

    @precondition(_someone)
    @rule(client=CLIENTS)
    def write(self, client: int) -> None:
        self._client(client).write()

    @precondition(_someone)
    @rule(client=CLIENTS)
    def ping(self, client: int) -> None:
        self.world.ping(self._client(client))

    @rule(seconds=st.sampled_from([0.1, 0.5, LINGER_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.hub.release_unused()

    @precondition(_someone)
    @rule(client=CLIENTS)
    def server_gives_up(self, client: int) -> None:
        self.world.end(self._client(client))

    @precondition(_someone)
    @rule(client=CLIENTS)
    def client_vanishes(self, client: int) -> None:
        self.world.vanish(self._client(client))

    @precondition(_someone)
    @rule(client=CLIENTS)
    def disconnect(self, client: int) -> None:
        self.world.disconnect(self._client(client))

    @rule()
    def session_ends(self) -> None:
        for client in [c for c in self.world.clients if c.broken]:
            self.world.disconnect(client)

    @rule()
    def all_settles(self) -> None:
        self.world.settle()

    @invariant()
    def nothing_is_amiss(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.settle()
            self.world.empty()
        finally:
            self.world.close()


def test_no_client_ever_sees_what_the_contract_forbids() -> None:
    """Never an unannounced hole, a repeat, anything out of order, or of what it does not hold."""
    run_state_machine_as_test(
        ContractMachine,
        settings=settings(
            max_examples=300,
            stateful_step_count=60,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
