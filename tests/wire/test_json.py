"""The first format: JSON in WebSocket text frames."""

from __future__ import annotations

import json

import pytest
from wsproto.frame_protocol import FrameProtocol, Opcode

from streamer.hub.publication import Publication
from streamer.hub.streams import TopicStream
from streamer.protocol import messages
from streamer.protocol.topics import Kind, Topic
from streamer.wire.format import Placed
from streamer.wire.json import WebSocketJson

TIMESTAMP = "2026-01-02T03:04:05.678Z"
WIRE = WebSocketJson(lambda: TIMESTAMP)
STREAM = TopicStream(Topic.parse("stock:A"), "e", history_length=0)


def nowhere() -> list[Placed]:
    """No positions: the format does not name any."""
    raise AssertionError


def decoded(data: bytes) -> list[object]:
    """The payloads of whole frames; of text the JSON."""
    frames = FrameProtocol(client=True, extensions=[])
    frames.receive_bytes(data)
    received = []
    for frame in frames.received_frames():
        assert frame.message_finished
        text = frame.opcode is Opcode.TEXT
        received.append(json.loads(str(frame.payload)) if text else frame.payload)
    return received


def publications(*sequences: int) -> list[Publication]:
    """Prices that are nothing but their sequences."""
    return [Publication(Kind.PRICE, n, 10 + n, b'{"sequence":%d}' % n) for n in sequences]


def test_one_message_is_bare_and_several_are_a_batch() -> None:
    """None are no bytes at all."""
    assert WIRE.data([], nowhere) == b""
    assert decoded(WIRE.data(WIRE.parts(publications(1), 0, STREAM), nowhere)) == [{"sequence": 1}]
    assert decoded(WIRE.data(WIRE.parts(publications(1, 2), 0, STREAM), nowhere)) == [
        {
            "type": "batch",
            "timestamp": TIMESTAMP,
            "batch_size": 2,
            "messages": [{"sequence": 1}, {"sequence": 2}],
        }
    ]


def test_a_message_names_what_it_follows_where_that_is_not_the_one_before() -> None:
    """Each follows the last one, and the first the position of the receiver."""
    parts = WIRE.parts(publications(3, 4, 7), 1, STREAM)
    assert [(order, json.loads(text), bare) for order, text, bare in parts] == [
        (13, {"sequence": 3, "previous": 1}, False),
        (14, {"sequence": 4}, False),
        (17, {"sequence": 7, "previous": 4}, False),
    ]
    (publication,) = publications(3)
    assert WIRE.part(publication, 1, STREAM) == parts[0]


def test_a_gap_is_never_inside_a_batch() -> None:
    """It ends the batch before it, and the next begins behind it."""
    gap = Publication(None, 9, 20, b'{"type":"gap"}', epoch="next", notice=True)
    parts = WIRE.parts([*publications(1, 2), gap, *publications(10)], 0, STREAM)
    batch, bare, last = decoded(WIRE.data(parts, nowhere))
    assert isinstance(batch, dict)
    assert batch["batch_size"] == 2
    assert bare == {"type": "gap"}
    assert last == {"sequence": 10}


def test_a_last_known_value_is_marked() -> None:
    """It names nothing that it follows."""
    (publication,) = publications(5)
    assert decoded(WIRE.data([WIRE.snapshot(publication)], nowhere)) == [
        {"sequence": 5, "snapshot": True}
    ]


def test_answers_have_a_type_and_the_time() -> None:
    """As every message of a server's."""
    assert decoded(WIRE.answer(messages.Pong(request_id=7))) == [
        {"type": "pong", "timestamp": TIMESTAMP, "request_id": 7}
    ]


@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536, 300_000])
def test_messages_of_any_length_are_whole(length: int) -> None:
    """The header has three forms."""
    publication = Publication(Kind.PRICE, 1, 1, b'{"pad":"%b"}' % (b"x" * length))
    assert decoded(WIRE.data([WIRE.part(publication, 0, STREAM)], nowhere)) == [
        {"pad": "x" * length}
    ]


def test_control_frames() -> None:
    """Heartbeats, their answers, and the end."""
    assert decoded(WIRE.ping(b"1")) == [bytearray(b"1")]
    assert decoded(WIRE.pong(b"2")) == [bytearray(b"2")]
    assert decoded(WIRE.close(1001, "going")) == [(1001, "going")]
