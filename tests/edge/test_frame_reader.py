"""Frames of clients, in any pieces, against wsproto's parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from streamer.edge.frame_reader import (
    BINARY,
    CONTINUATION,
    TEXT,
    FrameError,
    FrameReader,
    MessageTooLargeError,
)

MASK = b"\x01\x02\x03\x04"


def frame(first_byte: int, payload: bytes) -> bytes:
    """A masked frame."""
    masked = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    length = len(payload)
    if length < 126:
        return bytes((first_byte, 0x80 | length)) + MASK + masked
    return bytes((first_byte, 0x80 | 126)) + length.to_bytes(2) + MASK + masked


Outcome = tuple[list[tuple[int, str | bytes]], int]
"""Events, fragments aside, and the code of the error that ended them or 0."""


def read(pieces: list[bytes], max_message_bytes: int = 1 << 20) -> Outcome:
    """The outcome of reading the bytes with FrameReader."""
    reader = FrameReader(max_message_bytes=max_message_bytes)
    events: list[tuple[int, str | bytes]] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (event := reader.next_event()) is not None:
                if event[0] != CONTINUATION:
                    events.append(event)
    except FrameError as error:
        return events, error.reason.code
    return events, 0


def read_with_wsproto(data: bytes) -> Outcome:
    """The outcome of reading the bytes with wsproto."""
    parser = FrameProtocol(client=False, extensions=[])
    parser.receive_bytes(data)
    events: list[tuple[int, str | bytes]] = []
    parts: list[str | bytes] = []
    opcode = 0
    try:
        for one in parser.received_frames():
            if one.opcode in (Opcode.PING, Opcode.PONG):
                events.append((int(one.opcode), bytes(one.payload)))  # type: ignore[arg-type]
                continue
            opcode = int(one.opcode) or opcode
            parts.append(one.payload)  # type: ignore[arg-type]
            if one.message_finished:
                empty: str | bytes = "" if opcode == TEXT else b""
                events.append((opcode, empty.join(parts)))  # type: ignore[arg-type]
                parts, opcode = [], 0
    except ParseFailed as error:
        return events, int(error.code)
    return events, 0


FRAMES = st.lists(
    st.tuples(
        st.sampled_from([0x01, 0x02, 0x00, 0x80, 0x81, 0x82, 0x89, 0x8A, 0x83, 0xC1, 0x09]),
        st.one_of(
            st.binary(max_size=130),
            st.text(max_size=40).map(str.encode),
            st.sampled_from([b"\xe2\x82", b"\xac", b"\xed\xa0\x80", b"\xf0\x9f", b"\x98\x80"]),
        ),
    ),
    max_size=8,
)


@given(frames=FRAMES, size=st.integers(1, 40))
def test_it_agrees_with_wsproto_on_any_frames_in_any_pieces(
    frames: list[tuple[int, bytes]], size: int
) -> None:
    """The same messages and control frames come out, and the same error ends them."""
    data = b"".join(frame(first, payload) for first, payload in frames)
    ours = read([data[at : at + size] for at in range(0, len(data), size)])
    assert ours == read([data])
    theirs = read_with_wsproto(data)
    assert ours[1] == theirs[1]
    if not ours[1]:
        assert ours[0] == theirs[0]


def test_every_frame_of_a_message_is_an_event() -> None:
    """So each can be charged, however small."""
    reader = FrameReader(max_message_bytes=1000)
    reader.feed(frame(0x01, b"a") + frame(0x00, b"") * 5 + frame(0x80, b"b"))
    events = []
    while (event := reader.next_event()) is not None:
        events.append(event)
    assert events == [(CONTINUATION, b"")] * 6 + [(TEXT, "ab")]


@pytest.mark.parametrize(("first", "text"), [(0x01, "😀"), (0x02, "x")])
def test_what_is_held_of_a_message_is_bounded_in_bytes(first: int, text: str) -> None:
    """Emoji in one-byte fragments end where 1,000 bytes are held, and so do other fragments."""
    reader = FrameReader(max_message_bytes=1000)
    data = text.encode() * 2000
    reader.feed(frame(first, data[:1]) + b"".join(frame(0x00, b"%c" % byte) for byte in data[1:]))
    for _ in range(1000):
        assert reader.next_event() == (CONTINUATION, b"")
    with pytest.raises(MessageTooLargeError):
        reader.next_event()
    reader.feed(b"x" * 100_000)
    assert reader.next_event() is None
    assert not reader._data


def test_a_whole_message_is_returned_as_its_type() -> None:
    """Text is str, binary is bytes."""
    assert read([frame(0x81, "é".encode()) + frame(0x82, b"\xff")]) == (
        [(TEXT, "é"), (BINARY, b"\xff")],
        0,
    )
