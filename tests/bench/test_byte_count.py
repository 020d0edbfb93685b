"""The bytes that a client is sent, which must reach the goals that the documentation names.

Covers bench.byte_count and bench.smallest_deflate.
"""

from __future__ import annotations

import zlib

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.__main__ import main
from bench.byte_count import ByteCount, Stream, count_bytes, recorded, simulated, table
from bench.smallest_deflate import smallest_deflate
from streamer.config import Settings
from streamer.protocol.topics import Kind

WINDOW_BITS = 15
TEXTS = st.lists(st.sampled_from([b"price", b"quantity", b"1", b"23", b"\xff", b"7"]), max_size=60)


def with_zlib(message: bytes, before: bytes, level: int) -> int:
    """The bytes that zlib makes of a message without codes of its own."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -WINDOW_BITS, 9, zlib.Z_FIXED)
    compressor.compress(before)
    compressor.flush(zlib.Z_SYNC_FLUSH)
    payload = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return len(payload.removesuffix(b"\x00\x00\xff\xff"))


@given(st.binary(max_size=500) | TEXTS.map(b"".join), TEXTS.map(b"".join), st.integers(1, 9))
@settings(deadline=None)
def test_zlib_finds_nothing_smaller(message: bytes, before: bytes, level: int) -> None:
    """Whatever the message is, and what came before it."""
    if message:  # zlib leaves an empty block out
        assert smallest_deflate(message, before) <= with_zlib(message, before, level)


@pytest.mark.parametrize(
    ("message", "before"),
    [
        (b"a", b""),
        (b"abcdefgh", b""),
        (bytes(range(100, 200)), b""),  # stored
        (b"\xff" * 2, b""),  # literals of nine bits
        (b"a" * 200, b"-"),  # zlib refers to nothing at the very beginning
        (bytes(range(200)), b"-" + bytes(range(200))),
        (b"abc", b"abc" + bytes(range(128, 256)) * 8),
    ],
)
def test_what_can_be_written_in_one_good_way_is_as_small_as_with_zlib(
    message: bytes, before: bytes
) -> None:
    """Literals, a stored block, and references to the text itself and to what came before."""
    assert smallest_deflate(message, before) == with_zlib(message, before, 9)


def percent(count: ByteCount, size: float | None) -> float:
    """A size of a count, as a percentage of plain JSON."""
    assert size is not None
    return 100 * size / count.plain


@pytest.mark.parametrize(
    "stream",
    [
        simulated(Kind.PRICE, 1, 200, seconds=3),
        simulated(Kind.ORDERBOOK, 30, 300, seconds=3),
        recorded(),
    ],
    ids=lambda stream: stream.name,
)
def test_the_goals_are_reached(stream: Stream) -> None:
    """A fifth of plain JSON when compressed, and 12 % with deltas, too."""
    count = count_bytes(stream, Settings())
    assert percent(count, count.compressed) <= 20
    assert percent(count, count.compressed_delta) <= 12


def test_single_prices_are_near_the_smallest_that_is_possible() -> None:
    """For one price in each frame, more than 12 % are needed, whatever compresses it."""
    count = count_bytes(simulated(Kind.PRICE, 1, 20, seconds=5), Settings())
    assert count.publications_per_frame == 1
    assert percent(count, count.compressed) <= 20
    assert 12 < percent(count, count.smallest_delta) < percent(count, count.compressed_delta) < 14.5


def test_the_command_prints_a_table() -> None:
    """With a row for each load."""
    result = CliRunner().invoke(main, ["count-bytes", "--seconds", "1"])
    assert result.exit_code == 0, result.output
    assert [line.split("|")[1].strip() for line in result.output.splitlines()[2:]] == [
        "one price, 20/s",
        "one price, 50/s",
        "one price, 200/s",
        "30 order books, 300/s",
        "recorded: prices and order books of two symbols",
    ]


def test_the_table_has_the_share_of_plain_json() -> None:
    """Where a frame has several publications, no smallest size is known."""
    assert table([ByteCount("x", 1.5, 200, 30, 100, 20, None)]).endswith(
        "| x | 1.5 | 200.0 | 30.0 (15.0%) | 100.0 (50.0%) | 20.0 (10.0%) |  |"
    )
