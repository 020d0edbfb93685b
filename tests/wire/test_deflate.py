"""Compression on the server: who shares a compressor, what it costs, and when there is none.

Each client is one of `tests.hub.world`, which inflates with a window of its own and checks every
byte. The same in random orders: `tests.hub.test_compressed_contract`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from streamer.protocol import messages
from streamer.protocol.messages import Mode
from streamer.protocol.topics import Kind
from streamer.wire.deflate import Compression, Window
from streamer.wire.format import WireFormat
from streamer.wire.json import WebSocketJson
from tests.hub.pad import pad
from tests.hub.world import TIMESTAMP, TOPICS, Options, World

STOCK, OTHER = TOPICS[0], TOPICS[1]
EVERYTHING = Options(Mode.LATEST, frozenset(Kind), 0.0)
WINDOW = Window(15, takeover=True)
LONG = b'{"pad":"%b"}' % pad(1, 1000).encode()
PLAIN = WebSocketJson(lambda: TIMESTAMP)


def new_compression(**options: Any) -> Compression:
    """Compressors with settings that make every case easy to reach."""
    defaults: dict[str, Any] = {
        "level": 6,
        "min_message_bytes": 64,
        "min_members": 2,
        "max_memory_bytes": 1 << 30,
    }
    return Compression(lambda: TIMESTAMP, **(defaults | options))


@contextmanager
def world_of(*wires: WireFormat, writes_per_turn: int = 100) -> Iterator[World]:
    """A world with a client of each format, all of which hold one topic."""
    world = World(writes_per_turn=writes_per_turn, wires=wires)
    try:
        for _ in wires:
            world.subscribe(world.connect(), [STOCK], EVERYTHING)
        yield world
        world.settle()
        world.empty()
    finally:
        world.close()


def send(world: World, *, size: int = 500) -> None:
    """Publish, flush, and let everybody read."""
    world.publish(STOCK, Kind.PRICE, size)
    world.flush_begin(stretched=False)
    world.flush_finish()
    read(world)


def read(world: World) -> None:
    """Let everybody read."""
    for client in world.clients:
        client.read()
        client.check_up_to_date()


def test_a_group_is_sent_what_was_compressed_once() -> None:
    """With the window of what it was sent before: the second message costs much less."""
    compression = new_compression()
    wire = compression.format(WINDOW)
    with world_of(wire, wire, wire) as world:
        send(world)
        first = compression.output_bytes
        assert (compression.messages, compression.compressors) == (1, 1)
        send(world)
        assert compression.messages == 2
        assert compression.output_bytes - first < 0.7 * first
        assert compression.full_flushes == 0
    assert compression.compressors == 0
    assert compression.memory_bytes == 0, "nobody needed a compressor without a window"


def test_a_newcomer_costs_one_full_flush() -> None:
    """Several before the same frame cost no more."""
    compression = new_compression()
    wire = compression.format(WINDOW)
    with world_of(wire, wire) as world:
        send(world)
        for _ in range(3):
            world.subscribe(world.connect(), [STOCK], EVERYTHING)
        send(world)
        send(world)
        assert compression.full_flushes == 1
        assert compression.compressors == 1


def test_who_was_away_and_was_sent_other_messages_joins_again() -> None:
    """Its window has messages that the group's has not; after a full flush nobody refers to any."""
    compression = new_compression()
    wire = compression.format(WINDOW)
    with world_of(wire, wire, wire) as world:
        stray = world.clients[0]
        for _ in range(3):
            send(world)
            world.subscribe(stray, [OTHER], EVERYTHING)
            send(world)
            world.unsubscribe(stray, [OTHER])
            send(world)
        assert compression.full_flushes == 3


def test_a_group_that_grows_in_mid_flush_gets_its_window_with_the_next() -> None:
    """Otherwise who leaves in mid-flush would be sent what is in the window of nobody else."""
    compression = new_compression(min_members=4)
    wire = compression.format(WINDOW)
    with world_of(wire, wire, wire, writes_per_turn=1) as world:
        world.publish(STOCK, Kind.PRICE, 1000)
        world.flush_begin(stretched=False)
        assert world.flushing
        late = world.connect()
        world.subscribe(late, [STOCK], EVERYTHING)
        world.subscribe(world.connect(), [STOCK], EVERYTHING)
        world.unsubscribe(world.clients[2], [STOCK])  # still to be written to
        world.flush_finish()
        read(world)
        assert compression.compressors == 0
        send(world, size=1000)
        send(world, size=1000)
        assert compression.compressors == 1


def test_a_group_that_shrinks_in_mid_flush_finishes_it_with_its_window() -> None:
    """All of its members are sent the same frame, whoever leaves meanwhile."""
    compression = new_compression(min_members=3)
    wire = compression.format(WINDOW)
    with world_of(wire, wire, wire, writes_per_turn=1) as world:
        send(world)
        world.publish(STOCK, Kind.PRICE, 1000)
        world.flush_begin(stretched=False)
        for client in world.clients[:2]:
            world.unsubscribe(client, [STOCK])
        world.flush_finish()
        read(world)
        assert compression.messages == 2
        send(world)
        assert compression.compressors == 0


def test_small_groups_share_frames() -> None:
    """Clients that hold different topics share what is compressed of one that they all hold."""
    compression = new_compression(min_members=2)
    wire = compression.format(WINDOW)
    with world_of(wire, wire, wire) as world:
        for client, topic in zip(world.clients, TOPICS[1:4], strict=True):
            world.subscribe(client, [topic], EVERYTHING)
        assert world.hub.fanout.groups == 3
        send(world)
        assert (compression.messages, compression.compressors) == (1, 0)
        assert 0 < compression.output_bytes < compression.input_bytes


def test_clients_outside_of_groups_share_what_they_are_sent_alike() -> None:
    """As over TLS: each is written to by itself, one after another, the same text."""
    compression = new_compression()
    wire = compression.format(WINDOW)
    frames = {wire.data([(1, LONG, False)], list) for _ in range(5)}
    assert len(frames) == compression.messages == 1


@pytest.mark.parametrize("bits", range(9, 16))
def test_memory_is_bounded(bits: int) -> None:
    """A group for which there is no room is served like a small one, until there is."""
    window = Window(bits, takeover=True)
    compression = new_compression(max_memory_bytes=2 * window.compressor_bytes)
    wire = compression.format(window)
    with world_of(wire, wire, wire, wire) as world:
        for client, topic in zip(world.clients[2:], TOPICS[1:3], strict=True):
            world.subscribe(client, [topic], EVERYTHING)
        world.subscribe(world.connect(), [STOCK], EVERYTHING)
        send(world)  # a compressor for the large group, and one for those without a window
        assert compression.compressors == 1
        assert compression.memory_bytes == 2 * window.compressor_bytes
        other = world.connect()
        world.subscribe(other, [STOCK, OTHER], EVERYTHING)
        assert world.hub.fanout.groups == 3
        send(world)
        assert compression.compressors == 1
        assert compression.memory_bytes <= 2 * window.compressor_bytes


def test_the_memory_counted_is_what_zlib_documents() -> None:
    """(1 << (windowBits + 2)) + (1 << (memLevel + 9)), and some KB."""
    assert 256 * 1024 < Window(15, takeover=True).compressor_bytes < 264 * 1024
    assert 4 * 1024 < Window(9, takeover=True).compressor_bytes < 12 * 1024


def test_a_server_without_memory_for_windows_compresses_each_message_by_itself() -> None:
    """It says so when it agrees to compress (`edge.extensions`)."""
    compression = new_compression(max_memory_bytes=0, min_members=1)
    assert not compression.has_takeover
    wire = compression.format(WINDOW)
    with world_of(wire, wire) as world:
        send(world)
        send(world)
        assert (compression.messages, compression.compressors) == (2, 0)


def test_a_client_may_forbid_windows() -> None:
    """server_no_context_takeover; those who do not are in a group of their own."""
    compression = new_compression(min_members=1)
    with world_of(
        compression.format(WINDOW), compression.format(Window(15, takeover=False)), PLAIN
    ) as world:
        send(world)
        send(world)
        assert (compression.messages, compression.compressors) == (4, 1)


def test_nothing_is_compressed_while_the_server_is_behind() -> None:
    """Plain frames are in no window: it continues where it was."""
    behind = False
    compression = new_compression(is_behind=lambda: behind)
    wire = compression.format(WINDOW)
    with world_of(wire, wire) as world:
        send(world)
        behind = True
        send(world)
        alone = world.connect()
        world.subscribe(alone, [STOCK, OTHER], EVERYTHING)
        send(world)
        assert compression.messages == 1
        assert compression.skipped_bytes > 1500
        behind = False
        send(world)
        assert (compression.messages, compression.full_flushes) == (3, 0)


def test_while_the_loop_is_busy_only_groups_are_compressed() -> None:
    """A message to a single client costs as much as one to thousands."""
    compression = new_compression(is_busy=lambda: True)
    wire = compression.format(WINDOW)
    with world_of(wire, wire) as world:
        world.subscribe(world.connect(), [STOCK, OTHER], EVERYTHING)
        send(world)
        assert compression.messages == 1
        assert compression.skipped_bytes > 500


def test_a_short_message_is_not_compressed() -> None:
    """By itself it would hardly shrink; with a window the limit is a setting."""
    compression = new_compression(min_message_bytes=200)
    alone = compression.format(WINDOW)
    with_window = alone.for_group(2, has_newcomer=False)
    counts = []
    for size in (199, 200, 255, 256):
        for wire in (alone, with_window):
            wire.data([(1, b"x" * size, False)], list)
            counts.append(compression.messages)
    assert counts == [0, 0, 0, 1, 1, 2, 3, 4]


def test_a_message_that_would_grow_is_sent_plain_by_itself() -> None:
    """No byte more than without compression."""
    compression = new_compression(level=0)
    wire = compression.format(Window(15, takeover=False))
    assert wire.data([(1, LONG, False)], list) == PLAIN.data([(1, LONG, False)], list)


@pytest.mark.parametrize(
    "encode",
    [
        lambda wire: wire.answer(messages.Pong()),
        lambda wire: wire.ping(b"1"),
        lambda wire: wire.pong(b"1"),
        lambda wire: wire.close(1000, ""),
        lambda wire: wire.data([], list),
    ],
)
def test_answers_and_control_frames_are_never_compressed(
    encode: Callable[[WireFormat], bytes],
) -> None:
    """So they may come between two frames of a group."""
    wire = new_compression().format(WINDOW)
    group = wire.for_group(5, has_newcomer=True)
    assert group is not wire
    assert encode(wire) == encode(group) == encode(PLAIN)


def test_the_account_is_of_bytes_before_and_after() -> None:
    """Counted once, however many clients receive them; sizes are of payloads."""
    compression = new_compression()
    wire = compression.format(WINDOW).for_group(2, has_newcomer=True)
    frame = wire.data([(1, LONG, False)], list)
    statistics = compression.statistics()
    assert (statistics.messages, statistics.input_bytes) == (1, len(LONG))
    assert statistics.output_bytes == len(frame) - 4
    payload = frame[4:] + b"\x00\x00\xff\xff"
    assert zlib.decompressobj(-15).decompress(payload) == LONG
