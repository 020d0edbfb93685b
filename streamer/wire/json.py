"""JSON in WebSocket text frames: the format of every client that asks for no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from streamer.protocol import messages
from streamer.protocol.codec import encode
from streamer.wire.batch import batch_texts
from streamer.wire.format import Part, Positions, Sendable, Stream, WireFormat
from streamer.wire.frames import close_frame, ping_frame, pong_frame, text_frame


class WebSocketJson(WireFormat):
    """One JSON object per text message, uncompressed. It has no state: a server needs only one."""

    __slots__ = ("_timestamp",)

    def __init__(self, timestamp: Callable[[], str]) -> None:
        """`timestamp` returns the present time as RFC 3339 text in UTC."""
        self._timestamp = timestamp

    def part(self, publication: Sendable, position: int, stream: Stream) -> Part:  # noqa: ARG002
        """Encode one publication of a stream for a receiver at the sequence `position`."""
        text = publication.text_following(position)
        return publication.order, text, publication.epoch is not None

    def parts(
        self,
        publications: Iterable[Sendable],
        position: int,
        stream: Stream,  # noqa: ARG002
    ) -> list[Part]:
        """Encode publications of a stream, in order, for a receiver at the sequence `position`."""
        parts: list[Part] = []
        for publication in publications:
            text = publication.text_following(position)
            parts.append((publication.order, text, publication.epoch is not None))
            position = publication.sequence
        return parts

    def snapshot(self, publication: Sendable) -> Part:
        """Encode a publication as a last known value."""
        return publication.order, publication.snapshot_text, False

    def data(self, parts: Sequence[Part], positions: Positions) -> bytes:  # noqa: ARG002
        """Return the frames of data messages: one bare, several as a `batch`, a gap by itself."""
        if len(parts) == 1:
            return text_frame(parts[0][1])
        return b"".join(map(text_frame, batch_texts(parts, self._timestamp)))

    def data_apart(self, parts: Sequence[Part], positions: Positions) -> bytes:
        """Return the frames of data messages, in this format also where a subclass compresses."""
        return WebSocketJson.data(self, parts, positions)

    def answer(self, message: messages.ServerMessage) -> bytes:
        """Return the frame of an answer or an event, with the present time as its timestamp."""
        return text_frame(encode(message, self._timestamp()))

    def ping(self, payload: bytes) -> bytes:
        """Return a ping frame."""
        return ping_frame(payload)

    def pong(self, payload: bytes) -> bytes:
        """Return a pong frame."""
        return pong_frame(payload)

    def close(self, code: int, reason: str) -> bytes:
        """Return a close frame."""
        return close_frame(code, reason)
