"""Server-sent events: messages of the contract, each with the cursor of a client that has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamer.hub.publication import Publication
from streamer.hub.streams import TopicStream
from streamer.protocol import messages
from streamer.protocol.messages import Position
from streamer.protocol.topics import Kind, Topic
from streamer.wire import cursor
from streamer.wire.cursor import OWED_GAP, decode_cursor
from streamer.wire.events import EventStream
from streamer.wire.format import Part, Placed

TIMESTAMP = "2026-01-02T03:04:05.678Z"
WIRE = EventStream(lambda: TIMESTAMP)
A, B = map(Topic.parse, ("stock:A", "stock:B"))
STREAMS = {topic: TopicStream(topic, "e", history_length=0) for topic in (A, B)}

Event = tuple[dict[str, Any], dict[Topic, Position] | None]
"""The message of an event, and the positions of its cursor; None without an id."""


def price(sequence: int, *, order: int | None = None) -> Publication:
    """A price that is nothing but its sequence."""
    text = b'{"sequence":%d}' % sequence
    return Publication(Kind.PRICE, sequence, order or sequence, text)


def gap(sequence: int, epoch: str) -> Publication:
    """A gap into an epoch."""
    return Publication(None, sequence, 50, b'{"type":"gap"}', epoch=epoch, notice=True)


def parts(topic: Topic, position: int, *publications: Publication) -> list[Part]:
    """The parts of one topic, for a receiver at a position."""
    return WIRE.parts(publications, position, STREAMS[topic])


def events(data: bytes) -> list[Event]:
    """Read events as a browser does."""
    *blocks, rest = data.split(b"\n\n")
    assert rest == b""
    read: list[Event] = []
    for block in blocks:
        lines = [line.partition(": ") for line in block.decode().split("\n")]
        text = "\n".join(value for name, _, value in lines if name == "data")
        ids = [value for name, _, value in lines if name == "id"]
        read.append((json.loads(text), decode_cursor(ids[0], [A, B]) if ids else None))
    return read


def written(sent: list[Part], *placed: Placed) -> list[Event]:
    """The events of a write that leaves its receiver at these positions."""
    return events(WIRE.data(sent, lambda: placed))


def test_one_message_is_bare_and_several_are_a_batch() -> None:
    """An event each, with the positions of all topics of the stream."""
    assert WIRE.data([], list) == b""
    at = {A: Position("e", 1), B: Position("f", 9)}
    assert written(parts(A, 0, price(1)), (A, "e", 1), (B, "f", 9)) == [({"sequence": 1}, at)]
    ((batch, cursor),) = written(parts(A, 0, price(1), price(4)), (A, "e", 4))
    assert batch["type"] == "batch"
    assert batch["messages"] == [{"sequence": 1}, {"sequence": 4, "previous": 1}]
    assert cursor == {A: Position("e", 4)}


def test_each_event_of_a_write_says_how_far_a_client_is_that_has_it() -> None:
    """Not how far the write leads: the connection may be cut between two events."""
    big = b'{"pad":"%b"}' % (b"x" * 200_000)
    sent = [
        *parts(A, 6, Publication(Kind.PRICE, 7, 1, big), Publication(Kind.PRICE, 9, 3, big)),
        *parts(B, 2, Publication(Kind.PRICE, 3, 2, big)),
    ]
    sent.sort(key=lambda part: part[0])
    received = written(sent, (A, "e", 9), (B, "f", 3))
    assert [cursor for _, cursor in received] == [
        {A: Position("e", 7), B: Position("f", 2)},
        {A: Position("e", 7), B: Position("f", 3)},
        {A: Position("e", 9), B: Position("f", 3)},
    ]


def test_a_client_is_owed_a_gap_until_it_has_it_and_the_last_values_after_it() -> None:
    """Its epoch before the gap is over, and who resumes at the gap would not be sent the values."""
    value = Publication(Kind.PRICE, 40, 51, b'{"snapshot":true}', notice=True)
    sent = [
        *parts(A, 0, price(1), gap(40, "new"), value, price(41, order=52)),
        *parts(B, 0, price(1, order=53)),
    ]
    received = written(sent, (A, "new", 41), (B, "f", 1))
    before = {A: OWED_GAP, B: Position("f", 0)}
    assert [message.get("type", message.get("sequence")) for message, _ in received] == [
        1,
        "gap",
        "batch",
    ]
    assert [cursor for _, cursor in received] == [
        before,
        before,
        {A: Position("new", 41), B: Position("f", 1)},
    ]
    received = written(parts(A, 0, gap(40, "new"), price(41)), (A, "new", 41))
    assert [cursor for _, cursor in received] == [
        {A: Position("new", 40)},
        {A: Position("new", 41)},
    ]


def test_the_ids_of_many_events_take_no_more_work_than_the_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a gap in a hundred topics, each has a cursor of a hundred entries, most alike."""
    made: list[Topic] = []

    def counted(topic: Topic, epoch: str | None, sequence: int) -> str:
        made.append(topic)
        return cursor.entry(topic, epoch, sequence)

    monkeypatch.setattr("streamer.wire.events.entry", counted)
    topics = [Topic.parse(f"stock:{number}") for number in range(100)]
    sent: list[Part] = []
    for topic in topics:
        stream = TopicStream(topic, "e", history_length=0)
        sent += WIRE.parts([gap(40, "new"), price(41)], 0, stream)
    placed = [(topic, "new", 41) for topic in topics]
    lines = WIRE.data(sent, lambda: placed).split(b"\n")
    ids = [line.removeprefix(b"id: ").decode() for line in lines if line.startswith(b"id: ")]
    assert len(ids) == 2 * len(topics)
    assert decode_cursor(ids[0], topics) == dict.fromkeys(topics, OWED_GAP) | {
        topics[0]: Position("new", 40)
    }
    assert decode_cursor(ids[-1], topics) == dict.fromkeys(topics, Position("new", 41))
    assert len(made) <= len(topics) + len(sent)


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_a_text_of_several_lines_is_one_event(line_end: bytes) -> None:
    """A producer's JSON is passed on as it was written; in an event each line has a name."""
    text = line_end.join([b"{", b'"sequence": 1', b"}"])
    data = WIRE.data(parts(A, 0, Publication(Kind.PRICE, 1, 1, text)), lambda: [(A, "e", 1)])
    assert b"\r" not in data
    assert events(data) == [({"sequence": 1}, {A: Position("e", 1)})]


def test_last_known_values_leave_the_positions_as_they_are() -> None:
    """They are marked, and name nothing that they follow."""
    ((message, cursor),) = written([WIRE.snapshot(price(5))], (A, "e", 7))
    assert message == {"sequence": 5, "snapshot": True}
    assert cursor == {A: Position("e", 7)}


def test_events_of_the_server_have_no_id() -> None:
    """The client keeps the one of the last data message."""
    answer = WIRE.answer(messages.Pong(request_id=7))
    assert events(answer) == [({"type": "pong", "timestamp": TIMESTAMP, "request_id": 7}, None)]
    assert events(WIRE.close(4008, "too slow")) == [
        ({"type": "closed", "timestamp": TIMESTAMP, "code": 4008, "reason": "too slow"}, None)
    ]


def test_a_client_has_an_id_before_the_first_data_message() -> None:
    """An id without data makes no event, but a browser sends it when it reconnects."""
    assert WIRE.place(lambda: [(A, None, 0)]) == b"id: 1~hmcRRHG_0.\n\n"


def test_a_shutdown_sets_the_delay_of_browsers() -> None:
    """They wait for the last `retry` before they reconnect."""
    assert b"\nretry: 512\n\n" in WIRE.answer(messages.ServerShutdown(512))


def test_a_heartbeat_is_a_comment_that_nobody_answers() -> None:
    """So there is no pong either."""
    assert WIRE.ping(b"1") == b":\n\n"
    with pytest.raises(NotImplementedError):
        WIRE.pong(b"1")


def test_each_group_has_a_format_of_its_own() -> None:
    """Groups that share a lane and not all of them are at other positions."""
    assert WIRE.for_group(1, has_newcomer=True) is not WIRE
