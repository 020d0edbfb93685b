"""The contract between a hub and compressed clients, each with a window of its own to inflate with.

The steps are those of `tests.hub.test_contract`: clients come, stall with a full socket, read on,
change what they hold, leave and are restored, in every order and in the middle of a flush. What a
client receives is inflated by wsproto, and checked to the last byte: half of each message is a copy
of parts of others, so that a reference into a window that is out of step cannot go unnoticed.

Covers streamer.wire.deflate.
"""
# ruff: noqa: D102 - the name of a rule says what happens

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from streamer.protocol.messages import Mode
from streamer.protocol.topics import Kind
from streamer.wire.deflate import Compression, Window
from tests.hub.compressed_walk import Walk
from tests.hub.test_contract import (
    ALL_KINDS,
    MAX_CLIENTS,
    MESSAGES_PER_FLUSH,
    SIZES,
    ContractMachine,
)
from tests.hub.world import TIMESTAMP, TOPICS, WIRE, Options, World

EXAMPLES = 100
WALKS = 12

WINDOWS = st.lists(
    st.builds(
        Window, st.sampled_from([9, 15, 15]), takeover=st.sampled_from([True, True, True, False])
    ),
    min_size=1,
    max_size=2,
)
USUAL = Options(Mode.LATEST, ALL_KINDS, 0.0)
SIMILAR = st.sampled_from([USUAL, USUAL, USUAL, Options(Mode.ALL, ALL_KINDS, 0.0)])
"""Most clients ask for the same, so that they share groups."""
SECURED = st.sampled_from([False, False, False, True])


class CompressedMachine(ContractMachine):
    """A hub whose clients have several formats, and groups a window where there is memory."""

    is_behind = is_busy = False
    compression: Compression

    @initialize(
        writes_per_turn=st.integers(1, 3),
        messages_per_flush=MESSAGES_PER_FLUSH,
        windows=WINDOWS,
        some_plain=st.sampled_from([False, False, True]),
        min_members=st.sampled_from([1, 1, 2, 3]),
        max_memory_bytes=st.sampled_from([0, 300_000, 1 << 30, 1 << 30]),
        clients=st.lists(st.tuples(SECURED, SIMILAR), min_size=1, max_size=3),
    )
    def some_are_here(
        self,
        writes_per_turn: int,
        messages_per_flush: int,
        windows: list[Window],
        some_plain: bool,
        min_members: int,
        max_memory_bytes: int,
        clients: list[tuple[bool, Options]],
    ) -> None:
        self.compression = Compression(
            lambda: TIMESTAMP,
            level=6,
            min_message_bytes=64,
            min_members=min_members,
            max_memory_bytes=max_memory_bytes,
            is_behind=lambda: self.is_behind,
            is_busy=lambda: self.is_busy,
        )
        wires = [self.compression.format(window) for window in windows]
        self.world = World(
            writes_per_turn=writes_per_turn,
            messages_per_flush=messages_per_flush,
            wires=[*wires, *[WIRE] * some_plain],
        )
        for secured, options in clients:
            self.world.subscribe(self.world.connect(secured=secured), TOPICS[::4], options)

    @precondition(lambda self: len(self.world.clients) < MAX_CLIENTS)
    @rule(secured=SECURED, max_queued_bytes=st.sampled_from([1 << 20, 8000]), options=SIMILAR)
    def connect(self, secured: bool, max_queued_bytes: int, options: Options) -> None:
        client = self.world.connect(secured=secured, max_queued_bytes=max_queued_bytes)
        self.world.subscribe(client, TOPICS[::4], options)

    @rule(
        kinds=st.lists(st.sampled_from(TOPICS[0].kinds), min_size=1, max_size=3),
        size=SIZES,
        times=st.integers(1, 3),
    )
    def all_are_sent_something(self, kinds: list[Kind], size: int, times: int) -> None:
        for _ in range(times):
            self.publish_one_topic(kinds, size)
            self.flush_whole(stretched=False)
            self.world.check()  # which notes who is behind
            for client in self.world.clients:
                client.read()
                client.write()

    @rule(is_behind=st.sampled_from([False, False, True]), is_busy=st.booleans())
    def the_load_changes(self, is_behind: bool, is_busy: bool) -> None:
        self.is_behind, self.is_busy = is_behind, is_busy

    def teardown(self) -> None:
        super().teardown()
        assert self.compression.compressors == 0
        for name, count in vars(self.compression).items():
            if isinstance(count, int):
                TOTALS[name] = TOTALS.get(name, 0) + count


TOTALS: dict[str, int] = {}


def test_every_client_inflates_to_what_was_published() -> None:
    """Whoever shares a compressor with whom, and whatever else they are sent in between."""
    TOTALS.clear()
    run_state_machine_as_test(
        CompressedMachine,
        settings=settings(
            max_examples=EXAMPLES,
            derandomize=True,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert TOTALS["messages"] > EXAMPLES


def test_a_client_that_joins_a_group_inflates_from_a_full_flush_on() -> None:
    """Steps that need one: random examples take them in some runs and not in others."""
    machine = CompressedMachine()
    try:
        machine.some_are_here(
            writes_per_turn=1,
            messages_per_flush=1 << 20,
            windows=[Window(15, takeover=True)],
            some_plain=False,
            min_members=1,
            max_memory_bytes=1 << 30,
            clients=[(False, USUAL)],
        )
        for _ in range(2):
            machine.all_are_sent_something(kinds=[Kind.PRICE], size=1500, times=2)
            machine.connect(secured=False, max_queued_bytes=1 << 20, options=USUAL)
        machine.all_are_sent_something(kinds=[Kind.PRICE], size=1500, times=2)
        assert machine.compression.full_flushes == 2
    finally:
        machine.teardown()


@pytest.mark.parametrize("seed", range(WALKS))
def test_a_long_walk_leads_nowhere_else(seed: int) -> None:
    """Hundreds of steps without a pause for all to catch up, `tests.hub.compressed_walk`."""
    assert Walk(seed).run().messages > 0
