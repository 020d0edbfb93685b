"""The contract of `sequence`, `previous`, `gap` and `snapshot`, in every order of events.

Hypothesis plays source, flush loop, clients and their sockets, one step at a time: a flush is held
up between any two writes while clients come, go, subscribe, unsubscribe, stall and read on, and
while more is published. Connections end as networks do it: writes fail after some bytes, or are
taken and never arrive, and the hub notices at once, later, or after the client has come back. A
client is restored from a record of its session, which may have been kept long before, and from what
it has read. `tests.hub.world` checks what each client receives. A failure prints the
steps that lead to it and a line that replays it.

Covers streamer.hub.backlog, streamer.hub.fanout, streamer.hub.group, streamer.hub.hub,
streamer.hub.publication, streamer.hub.rate_queue, streamer.hub.replay_queue,
streamer.hub.renditions, streamer.hub.sessions, streamer.hub.streams, streamer.hub.subscription,
streamer.hub.upstream and streamer.wire.batch. Some of its clients receive server-sent events, each
of which has to name exactly where the client is.
"""
# ruff: noqa: D102 - the name of a rule says what happens

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from streamer.hub.renditions import WHOLE, Detail
from streamer.protocol.messages import Mode
from streamer.protocol.topics import Kind, SubscriptionType, Topic
from tests.hub.world import LINGER_SECONDS, POSITIONED, TOPICS, Client, Options, World

ALL_KINDS = frozenset(Kind)

KINDS = st.sampled_from(
    [ALL_KINDS, ALL_KINDS, frozenset({Kind.PRICE}), frozenset({Kind.ORDERBOOK})]
)
DETAILS = st.sampled_from(
    [WHOLE, WHOLE, Detail(delta=True), Detail(delta=True, depth=2), Detail(depth=3)]
)
OPTIONS = st.one_of(
    st.builds(Options, st.just(Mode.LATEST), KINDS, st.sampled_from([0.0, 0.5]), DETAILS),
    st.builds(Options, st.just(Mode.ALL), KINDS, st.just(0.0), DETAILS),
)
PUBLICATIONS = st.sampled_from([(topic, kind) for topic in TOPICS[:-1] for kind in topic.kinds])
REQUESTS = st.sampled_from(
    [TOPICS[:1], TOPICS[:2], TOPICS[1:2], TOPICS[2:3], TOPICS[3:4], TOPICS[4:], TOPICS[::4]]
)
EVENTS = st.sampled_from([False, False, True])
"""Whether a client receives server-sent events."""
STRETCHED = st.sampled_from([False, False, True])
SIZES = st.sampled_from([0, 0, 100, 1500, 6000])

EXAMPLES = 300
MAX_CLIENTS = 5
CLIENTS = st.integers(0, MAX_CLIENTS - 1)
MESSAGES_PER_FLUSH = st.sampled_from([1 << 20, 1, 2, 5])
"""Enough for all, or so little that a flush leaves something to the next one."""


def _someone(machine: ContractMachine) -> bool:
    return bool(machine.world.clients)


class ContractMachine(RuleBasedStateMachine):
    """Anything that the source, the clients and the event loop may do to a hub, in any order."""

    world: World

    def _client(self, number: int) -> Client:
        return self.world.clients[number % len(self.world.clients)]

    @initialize(
        writes_per_turn=st.integers(1, 5),
        messages_per_flush=MESSAGES_PER_FLUSH,
        clients=st.lists(st.tuples(st.booleans(), EVENTS, OPTIONS), min_size=1, max_size=3),
        values_take_long=st.booleans(),
    )
    def some_are_here(
        self,
        writes_per_turn: int,
        messages_per_flush: int,
        clients: list[tuple[bool, bool, Options]],
        values_take_long: bool,
    ) -> None:
        self.world = World(writes_per_turn=writes_per_turn, messages_per_flush=messages_per_flush)
        self.world.values_take_long = values_take_long
        for secured, events, options in clients:
            client = self.world.connect(secured=secured, events=events)
            self.world.subscribe(client, TOPICS[::4], options)

    @precondition(lambda self: len(self.world.clients) < MAX_CLIENTS)
    @rule(
        secured=st.booleans(),
        max_queued_bytes=st.sampled_from([1 << 20, 8000]),
        events=EVENTS,
        options=OPTIONS,
    )
    def connect(self, secured: bool, max_queued_bytes: int, events: bool, options: Options) -> None:
        client = self.world.connect(
            secured=secured, max_queued_bytes=max_queued_bytes, events=events
        )
        self.world.subscribe(client, TOPICS[::4], options)

    @precondition(_someone)
    @rule(client=CLIENTS, topics=REQUESTS, options=OPTIONS)
    def subscribe(self, client: int, topics: tuple[Topic, ...], options: Options) -> None:
        if topics[0].subscription_type is not SubscriptionType.STOCK:
            options = attrs.evolve(options, kinds=ALL_KINDS)
        self.world.subscribe(self._client(client), topics, options)

    @precondition(_someone)
    @rule(client=CLIENTS, topics=st.lists(st.sampled_from(TOPICS), min_size=1, unique=True))
    def unsubscribe(self, client: int, topics: list[Topic]) -> None:
        self.world.unsubscribe(self._client(client), topics)

    @rule(kinds=st.lists(st.sampled_from(TOPICS[0].kinds), min_size=1, max_size=3), size=SIZES)
    def publish_one_topic(self, kinds: list[Kind], size: int) -> None:
        for kind in kinds:
            self.world.publish(TOPICS[0], kind, size)

    @rule(publications=st.lists(PUBLICATIONS, min_size=1, max_size=5), size=SIZES)
    def publish(self, publications: list[tuple[Topic, Kind]], size: int) -> None:
        for topic, kind in publications:
            self.world.publish(topic, kind, size)

    @rule(
        kinds=st.lists(st.sampled_from(POSITIONED.kinds), min_size=1, max_size=3),
        size=SIZES,
        heard=st.sampled_from([True, True, False]),
    )
    def place(self, kinds: list[Kind], size: int, heard: bool) -> None:
        self.world.place(kinds, size, heard=heard)

    @rule(
        kinds=st.lists(st.sampled_from(POSITIONED.kinds), max_size=6),
        heard=st.booleans(),
        trimmed=st.booleans(),
    )
    def outage(self, kinds: list[Kind], heard: bool, trimmed: bool) -> None:
        # Once more before positions are read, after they were asked for.
        self.world.lose_source([POSITIONED], times=2)
        self.world.place(kinds, 0, heard=heard)
        self.world.recover(trimmed=trimmed)

    @rule(trimmed=st.booleans())
    def recover(self, trimmed: bool) -> None:
        self.world.recover(trimmed=trimmed)

    @rule()
    def begin_epoch(self) -> None:
        self.world.begin_epoch()

    @rule(topics=st.sampled_from([TOPICS, TOPICS[:1], TOPICS[2:]]))
    def lose_source(self, topics: tuple[Topic, ...]) -> None:
        self.world.lose_source(topics)

    @precondition(lambda self: not self.world.flushing)
    @rule(stretched=STRETCHED)
    def flush_begin(self, stretched: bool) -> None:
        self.world.flush_begin(stretched=stretched)

    @precondition(lambda self: self.world.flushing)
    @rule()
    def flush_step(self) -> None:
        self.world.flush_step()

    @rule(stretched=STRETCHED)
    def flush_whole(self, stretched: bool) -> None:
        self.world.flush_finish()
        self.world.flush_begin(stretched=stretched)
        self.world.flush_finish()

    @precondition(_someone)
    @rule(client=CLIENTS, max_bytes=st.sampled_from([100, 5000, 1 << 20]))
    def read_and_write(self, client: int, max_bytes: int) -> None:
        self._client(client).read(max_bytes)
        self._client(client).write()

    @precondition(_someone)
    @rule(client=CLIENTS, topics=REQUESTS)
    def resync(self, client: int, topics: tuple[Topic, ...]) -> None:
        self.world.resync(self._client(client), topics)

    @precondition(_someone)
    @rule(client=CLIENTS)
    def values_are_made(self, client: int) -> None:
        self.world.values_are_made(self._client(client))

    @precondition(_someone)
    @rule(client=CLIENTS)
    def ping(self, client: int) -> None:
        self.world.ping(self._client(client))

    @precondition(_someone)
    @rule(client=CLIENTS)
    def pong(self, client: int) -> None:
        self.world.pong(self._client(client))

    @precondition(_someone)
    @rule(client=CLIENTS, kinds=st.lists(st.sampled_from(POSITIONED.kinds), max_size=2))
    def heartbeat(self, client: int, kinds: list[Kind]) -> None:
        self.world.ping(self._client(client))
        self._client(client).read()
        self.publish_one_topic(kinds, 0)
        self.flush_whole(stretched=False)
        self.world.pong(self._client(client))

    @precondition(_someone)
    @rule(
        client=CLIENTS,
        own_positions=st.booleans(),
        secured=st.booleans(),
        noticed=st.sampled_from([True, True, False]),
    )
    def restore(self, client: int, own_positions: bool, secured: bool, noticed: bool) -> None:
        self.world.restore(
            self._client(client),
            own_positions=own_positions,
            secured=secured,
            noticed=noticed or len(self.world.clients) >= MAX_CLIENTS,
        )

    @precondition(_someone)
    @rule(client=CLIENTS)
    def save(self, client: int) -> None:
        self.world.save(self._client(client))

    @precondition(lambda self: self.world.kept and len(self.world.clients) < MAX_CLIENTS)
    @rule(kept=st.integers(0, 5), own_positions=st.booleans(), secured=st.booleans())
    def restore_kept(self, kept: int, own_positions: bool, secured: bool) -> None:
        record = self.world.kept[kept % len(self.world.kept)]
        self.world.restore_kept(record, own_positions=own_positions, secured=secured)

    @precondition(_someone)
    @rule(client=CLIENTS, after_bytes=st.sampled_from([0, 1, 100, 5000]))
    def writes_fail(self, client: int, after_bytes: int) -> None:
        self.world.fail(self._client(client), after_bytes)

    @precondition(_someone)
    @rule(client=CLIENTS)
    def network_is_lost(self, client: int) -> None:
        self.world.lose(self._client(client))

    @rule(seconds=st.sampled_from([0.1, 0.5, LINGER_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.hub.release_unused()

    @precondition(_someone)
    @rule(client=CLIENTS, how=st.sampled_from([World.end, World.vanish, World.disconnect]))
    def leave(self, client: int, how: Callable[[World, Client], None]) -> None:
        how(self.world, self._client(client))

    @precondition(lambda self: any(client.broken for client in self.world.clients))
    @rule()
    def sessions_notice(self) -> None:
        for client in [client for client in self.world.clients if client.broken]:
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


def walk(examples: int) -> None:
    """Look through so many random walks."""
    run_state_machine_as_test(
        ContractMachine,
        settings=settings(
            max_examples=examples,
            # The same examples in each run: a change is red for what it did. More of them, and
            # others, are looked through by `tests.hub.contract_walk`.
            derandomize=True,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_client_ever_sees_what_the_contract_forbids() -> None:
    """Never an unannounced hole, a repeat, anything out of order, or of what it does not hold."""
    walk(EXAMPLES)


def test_the_contract_holds_for_topics_that_make_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the topics are treated like messages to one user, the others are shared."""
    own = {TOPICS[1], POSITIONED}
    monkeypatch.setattr(Topic, "is_personal", property(own.__contains__))
    walk(EXAMPLES // 2)


def test_the_contract_holds_where_all_is_rendered_in_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with books of hundreds of levels: a turn of the loop is between any two messages."""
    monkeypatch.setattr("streamer.hub.fanout.RENDERED_BYTES_PER_TURN", 1)
    monkeypatch.setattr("streamer.hub.outbox.RENDERED_BYTES_PER_TURN", 1)
    monkeypatch.setattr("streamer.hub.outbox.REPLAYED_PER_TURN", 1)
    walk(EXAMPLES // 2)
