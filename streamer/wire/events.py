"""Server-sent events: the format of clients that cannot open a WebSocket.

Each event is one message of the contract, a `batch` included, and `id` is a cursor of all topics of
the stream (`streamer.wire.cursor`). Events are unnamed, so that a browser's `onmessage` gets them
all; `type` distinguishes them.

Frames with cursors can be shared
---------------------------------
An id has to be right for each client that receives it, and a frame is made once for a group. All
members of a group hold the same lanes and have been sent the same messages of them, so after a
frame they are all at the positions of the group's lanes: one cursor is exact for all of them. Two
groups share lanes, but not all of them, so each group has a format object of its own (`for_group`)
and shares its frames with no other. A solo's cursor is made from its own subscriptions.

A client may be cut off anywhere, and resumes after the last whole event. So the id of each event,
not just of the last one of a write, has to say exactly how far the client is then:

- The last event of a write leaves the client at the positions that the hub has for it
  (`positions`). Usually there is only this one: several messages of a flush are one batch.
- An event before that (a gap is never inside a batch) leaves it where the later parts of the write
  begin. A topic in which a gap, or the last known values after one, are still to come has no
  position to resume from: the cursor says that a gap is owed, and the client is sent one.
- Last known values come when a topic begins, before the client has any position in it. If they take
  several events, only the last one has an id: whoever is cut off before that is sent all of them.
- An answer or another event of the server has no id: the client keeps the one it has. When a
  stream begins, an id without an event follows its first events, so that a client that is cut off
  before the first data message can resume as well (`place`).

The `id` line comes behind the data, so that a client that takes ids before the end of their event
cannot confirm half a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Final

from streamer.protocol import messages
from streamer.protocol.codec import encode
from streamer.protocol.topics import Topic
from streamer.wire.batch import MAX_BATCH_BYTES, batch_text
from streamer.wire.cursor import encode_cursor, entry, join_entries
from streamer.wire.format import Part, Placed, Positions, Sendable, Stream, WireFormat

_LINE_END: Final = re.compile(rb"\r\n?|\n")


class _EventText(bytes):
    """The JSON of one message, and its place in its topic's stream."""

    topic: Topic
    before: int
    """The sequence that the receiver was at."""
    is_gap: bool
    is_notice: bool


def _placed_text(publication: Sendable, position: int, stream: Stream) -> _EventText:
    text = _EventText(publication.text_following(position))
    text.topic = stream.topic
    text.before = position
    text.is_gap = publication.epoch is not None
    text.is_notice = publication.notice
    return text


class EventStream(WireFormat):
    """JSON messages as server-sent events (text/event-stream)."""

    __slots__ = ("_timestamp",)

    names_positions = True

    def __init__(self, timestamp: Callable[[], str]) -> None:
        """`timestamp` returns the present time as RFC 3339 text in UTC."""
        self._timestamp = timestamp

    def for_group(self, members: int, *, has_newcomer: bool) -> WireFormat:  # noqa: ARG002
        """Return a new object: the frames of a group name the positions of all its lanes."""
        return EventStream(self._timestamp)

    def part(self, publication: Sendable, position: int, stream: Stream) -> Part:
        """Encode one publication of a stream for a receiver at the sequence `position`."""
        text = _placed_text(publication, position, stream)
        return publication.order, text, text.is_gap

    def parts(self, publications: Iterable[Sendable], position: int, stream: Stream) -> list[Part]:
        """Encode publications of a stream, in order, for a receiver at the sequence `position`."""
        parts: list[Part] = []
        for publication in publications:
            parts.append(self.part(publication, position, stream))
            position = publication.sequence
        return parts

    def snapshot(self, publication: Sendable) -> Part:
        """Encode a publication as a last known value."""
        return publication.order, publication.snapshot_text, False

    def data(self, parts: Sequence[Part], positions: Positions) -> bytes:
        """Return the events of data messages, each with the cursor of a client that has it."""
        if not parts:
            return b""
        events = list(_events(parts))
        ends = [end for _, end in events]
        lines: list[bytes] = []
        for (texts, _), id_line in zip(events, _id_lines(positions(), parts, ends), strict=True):
            text = texts[0] if len(texts) == 1 else batch_text(texts, self._timestamp)
            lines += _data_lines(text), id_line, b"\n"
        return b"".join(lines)

    def place(self, positions: Positions) -> bytes:
        """Return an id without a message, which changes what the client sends when it resumes."""
        return _id_line(positions()) + b"\n"

    def answer(self, message: messages.ServerMessage) -> bytes:
        """Return an answer or another event of the server, without an id.

        `server_shutdown` has its delay as the `retry` of the event, too: browsers obey it.
        """
        lines = _data_lines(encode(message, self._timestamp()))
        if isinstance(message, messages.ServerShutdown):
            lines += b"retry: %d\n" % message.retry_after_ms
        return lines + b"\n"

    def ping(self, payload: bytes) -> bytes:  # noqa: ARG002 - nothing answers it
        """Return a comment, which keeps proxies from closing the connection."""
        return b":\n\n"

    def pong(self, payload: bytes) -> bytes:
        """Return nothing: an HTTP client sends no pings."""
        raise NotImplementedError

    def close(self, code: int, reason: str) -> bytes:
        """Return the last event, `closed`, which says what a close frame would."""
        return self.answer(messages.Closed(code, reason))


def _data_lines(text: bytes) -> bytes:
    """Return the data of an event: a line for each of the text's, which JSON may have."""
    if b"\n" in text or b"\r" in text:
        text = _LINE_END.sub(b"\ndata: ", text)
    return b"data: %b\n" % text


def _id_line(at: Iterable[Placed]) -> bytes:
    return b"id: %b\n" % encode_cursor(at).encode()


def _is_placed(part: Part) -> bool:
    """Whether a part has a place in a stream; last known values, sent by themselves, have none."""
    return isinstance(part[1], _EventText)


def _events(parts: Sequence[Part]) -> Iterable[tuple[list[bytes], int]]:
    """Yield the texts of each event, with the number of parts up to its end."""
    texts: list[bytes] = []
    size = 0
    for number, (_, text, bare) in enumerate(parts):
        if texts and (bare or size + len(text) > MAX_BATCH_BYTES):
            yield texts, number
            texts, size = [], 0
        texts.append(text)
        size += len(text)
        if bare:
            yield texts, number + 1
            texts, size = [], 0
    if texts:
        yield texts, len(parts)


def _id_lines(
    placed: Iterable[Placed], parts: Sequence[Part], ends: Sequence[int]
) -> Iterable[bytes]:
    """Return the line with the id of each event; empty for one without an id.

    `placed` are the positions of a client that has all parts, and `ends` how many of them it has
    after each event.
    """
    if len(ends) == 1:
        return [_id_line(placed)]
    if not _is_placed(parts[0]):  # nor is any other: the last id is that of all
        return [*repeat(b"", len(ends) - 1), _id_line(placed)]
    epochs: dict[Topic, str | None] = {}
    entries: dict[Topic, str] = {}
    for topic, epoch, sequence in placed:
        epochs[topic] = epoch
        entries[topic] = entry(topic, epoch, sequence)
    # From the last event to the first: between two of them only the entries of the topics differ
    # that the later one is about. After a gap in a hundred topics there are as many events.
    lines: list[bytes] = []
    owed: set[Topic] = set()
    at = len(parts)
    for end in reversed(ends):
        for _, text, _ in reversed(parts[end:at]):
            assert isinstance(text, _EventText)
            topic = text.topic
            if text.is_gap:
                owed.add(topic)
            is_owed = text.is_notice or topic in owed
            epoch = None if is_owed else epochs[topic]
            entries[topic] = entry(topic, epoch, text.before)
        at = end
        lines.append(b"id: %b\n" % join_entries(entries.values()).encode())
    lines.reverse()
    return lines
