"""A cursor says where a client is in each topic, in a text that every server can read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol.messages import MAX_EPOCH_CHARACTERS, MAX_SEQUENCE, Position
from streamer.protocol.topics import Topic
from streamer.wire.cursor import (
    MAX_CURSOR_BYTES,
    MAX_TOPICS,
    OWED_GAP,
    decode_cursor,
    encode_cursor,
)

A, B, C = map(Topic.parse, ("stock:A", "stock:B", "market:M"))

EPOCHS = st.one_of(
    st.from_regex(r"[0-9a-f]{8}-[0-9]{1,3}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_EPOCH_CHARACTERS),
)
POSITIONS = st.builds(Position, EPOCHS, st.integers(0, MAX_SEQUENCE - 1))


@given(st.dictionaries(st.sampled_from([A, B, C]), POSITIONS))
def test_a_cursor_returns_the_positions_that_it_was_made_of(
    positions: dict[Topic, Position],
) -> None:
    """Whatever text an epoch is; it needs no escape in a URL, a header or an event."""
    cursor = encode_cursor((topic, at.epoch, at.sequence) for topic, at in positions.items())
    assert re.fullmatch(r"[0-9A-Za-z._~-]+", cursor)
    assert decode_cursor(cursor, [A, B, C]) == positions


def test_a_topic_that_is_owed_a_gap_has_no_position_to_resume_from() -> None:
    """Its epoch is that of no stream."""
    cursor = encode_cursor([(A, "e", 5), (B, None, 0)])
    assert decode_cursor(cursor, [A, B]) == {A: Position("e", 5), B: OWED_GAP}


def test_topics_may_be_added_and_left_out() -> None:
    """A stream may be resumed with other topics; those that the cursor does not name are new."""
    cursor = encode_cursor([(A, "e", 5), (B, "f", 6)])
    assert decode_cursor(cursor, [B, C]) == {B: Position("f", 6)}


@pytest.mark.parametrize("epoch", ["0123456789abcdef.12", "삼" * MAX_EPOCH_CHARACTERS])
def test_the_length_is_bounded(epoch: str) -> None:
    """Where epochs are too long for it, a gap is owed in the topics that have no room."""
    topics = [Topic.parse(f"stock:{number}") for number in range(MAX_TOPICS)]
    cursor = encode_cursor((topic, epoch, 1 << 40) for topic in topics)
    assert len(cursor) <= MAX_CURSOR_BYTES
    positions = decode_cursor(cursor, topics)
    assert list(positions) == topics
    known = [topic for topic in topics if positions[topic] == Position(epoch, 1 << 40)]
    assert known == topics[: len(known)]
    assert all(positions[topic] == OWED_GAP for topic in topics[len(known) :])
    assert (known == topics) is epoch.isascii()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "41",
        "1~",
        "1~short",
        "1~AAAAAAAA5",
        "1~AAAAAAAA5.e~AAAAAAAA6.e",
        "1~AAAAAAAA-5.e",
        "1~AAAAAAAAfffffffffffffff.e",
        "1~AAAAAAAAffffffffffffff.e",
        "1~AAAAAAAA5.e e",
        "1~AAAAAAAA5._a",
        "1~AAAAAAAA5.__w",
        "1~AAAAAAAA5._" + "YQ" * 100,
        "1~" + "x" * MAX_CURSOR_BYTES,
        "1" + "".join(f"~{number:08d}1.e" for number in range(MAX_TOPICS + 1)),
        "1~\u00e9AAAAAAA5.e",
    ],
)
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    """With a text for people, and whichever topics are asked for."""
    with pytest.raises(ValueError, match=r"cursor|epoch|sequence"):
        decode_cursor(text, [A])
