"""Frames, read by a WebSocket implementation that is not ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage

from streamer.protocol.errors import CLOSE_REASONS, CloseReason
from streamer.wire.frames import close_frame, ping_frame, pong_frame, text_frame


def read_as_client(data: bytes) -> list[Event]:
    """Return the events that a client reads from the server's bytes."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    return list(client.events())


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_text_frame_is_one_whole_message(size: int) -> None:
    """On both sides of each change of the header's length, the payload comes out whole."""
    [event] = read_as_client(text_frame(b"x" * size))
    assert event == TextMessage(data="x" * size, frame_finished=True, message_finished=True)


@given(st.lists(st.text(max_size=200), max_size=5))
def test_frames_written_together_are_read_apart(texts: list[str]) -> None:
    """Frames that share one write stay messages of their own."""
    events = read_as_client(b"".join(text_frame(text.encode()) for text in texts))
    assert [event.data for event in events if isinstance(event, TextMessage)] == texts


@pytest.mark.parametrize("payload", [b"", b"1", b"x" * 125])
def test_control_frames_carry_their_payload(payload: bytes) -> None:
    """A ping and a pong are read as such, with what they carry."""
    assert read_as_client(ping_frame(payload)) == [Ping(payload=payload)]
    assert read_as_client(pong_frame(payload)) == [Pong(payload=payload)]


@pytest.mark.parametrize("reason", CLOSE_REASONS, ids=lambda reason: str(reason.code))
def test_every_close_reason_is_read_back(reason: CloseReason) -> None:
    """The code and the reason in the table are those that the client sees."""
    [event] = read_as_client(close_frame(reason.code, reason.reason))
    assert event == CloseConnection(code=reason.code, reason=reason.reason)


@given(st.text(min_size=100, max_size=200))
def test_a_close_reason_too_long_is_cut_at_a_whole_character(reason: str) -> None:
    """A close frame never exceeds what a control frame may hold, and stays UTF-8."""
    frame = close_frame(1008, reason)
    assert len(frame) <= 2 + 125
    [event] = read_as_client(frame)
    assert isinstance(event, CloseConnection)
    assert event.reason is not None
    assert reason.startswith(event.reason)
    assert len(event.reason.encode()) > 123 - 4 or event.reason == reason
