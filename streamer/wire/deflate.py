"""Compressed WebSocket messages (permessage-deflate, RFC 7692): compressed once for all receivers.

With context takeover a message may refer to earlier ones on the same connection, which makes
messages of a stream several times smaller; usually it takes a compressor of 300 KB for each client.
Here all members of a group are sent the same frames, so one compressor serves the group:

- A client that joins has not received the earlier messages. The compressor is flushed fully before
  the next frame, so that nothing after it refers to anything before it.
- Messages that are not compressed are in no window. An answer, or a frame that is sent plain since
  the server is behind, therefore changes nothing.
- A client outside of its group is sent messages that are compressed by themselves. They are in its
  window, and out of step with the group's; but it can only join again by a full flush.

Small groups would cost a compressor each and share no frame, so they use the same format as clients
in no group: each message by itself, made by a compressor that all of them share.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import attrs

from streamer.wire.batch import batch_texts
from streamer.wire.format import Part, Positions, WireFormat
from streamer.wire.frames import compressed_text_frame, text_frame
from streamer.wire.json import WebSocketJson

SMALLEST_WINDOW_BITS: Final = 9
"""zlib makes no raw DEFLATE with the smallest window of RFC 7692, 8 bits."""
LARGEST_WINDOW_BITS: Final = 15

SELF_CONTAINED_MIN_BYTES: Final = 256
"""Shorter messages hardly shrink by themselves: a price of 170 bytes to 140."""

_FLUSH_END: Final = b"\x00\x00\xff\xff"
"""The end of a flush, which is not sent (RFC 7692, 7.2.1)."""
_STATE_BYTES: Final = 6 * 1024
"""Memory of a compressor besides its buffers."""


class Compressor(Protocol):
    """A compressor of zlib."""

    def compress(self, data: bytes, /) -> bytes:
        """Return what is ready of the output."""

    def flush(self, mode: int = ..., /) -> bytes:
        """Return the rest of the output, to a byte's end."""


@attrs.frozen
class Window:
    """How a client lets the server compress."""

    bits: int
    """The base-2 logarithm of the window's size, 9 to 15."""
    takeover: bool = attrs.field(kw_only=True)
    """Whether a message may refer to earlier ones."""

    @property
    def compressor_bytes(self) -> int:
        """The memory of a compressor (zlib.h, deflateInit2)."""
        return (1 << (self.bits + 2)) + (1 << (_memory_level(self.bits) + 9)) + _STATE_BYTES


def _memory_level(window_bits: int) -> int:
    return max(window_bits - 7, 1)  # the two large buffers of zlib are then of the same size


@attrs.frozen
class CompressionStatistics:
    """The account of all compressors."""

    compressors: int
    """Groups of clients that have a compressor with a window now."""
    memory_bytes: int
    """The memory of all compressors, those without a window included."""
    messages: int
    """Messages compressed, each once for all its receivers."""
    input_bytes: int
    """Their size before; each counts once, however many clients receive it."""
    output_bytes: int
    """Their size afterwards."""
    full_flushes: int
    """How often a compressor gave up its window for a client that joined its group."""
    skipped_bytes: int
    """Bytes that were sent plain because the server was behind."""


class Compression:
    """The compressors of one server: their settings, their memory and their account."""

    def __init__(
        self,
        timestamp: Callable[[], str],
        *,
        level: int,
        min_message_bytes: int,
        min_members: int,
        max_memory_bytes: int,
        is_behind: Callable[[], bool] = lambda: False,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`timestamp` returns the present time as RFC 3339 text in UTC.

        A group of `min_members` has a compressor of its own if `max_memory_bytes` allow one more.
        While `is_behind`, nothing is compressed; while `is_busy`, only what many clients share.
        """
        self.timestamp = timestamp
        self.level = level
        self.min_message_bytes = min_message_bytes
        self.min_members = min_members
        self.is_behind = is_behind
        self.is_busy = is_busy
        self._max_memory_bytes = max_memory_bytes
        self._formats: dict[Window, WebSocketDeflate] = {}
        self.compressors = 0
        self.memory_bytes = 0
        self.messages = 0
        self.input_bytes = 0
        self.output_bytes = 0
        self.full_flushes = 0
        self.skipped_bytes = 0

    @property
    def has_takeover(self) -> bool:
        """Whether there is memory for any compressor with a window."""
        return self._max_memory_bytes > 0

    def format(self, window: Window) -> WebSocketDeflate:
        """Return the format of clients that have agreed to `window`."""
        wire = self._formats.get(window)
        if wire is None:
            wire = self._formats[window] = WebSocketDeflate(self, window)
        return wire

    def compressor(self, window: Window) -> Compressor:
        """Return a new compressor; its memory is counted."""
        self.memory_bytes += window.compressor_bytes
        return zlib.compressobj(self.level, zlib.DEFLATED, -window.bits, _memory_level(window.bits))

    def admits(self, window: Window, members: int) -> bool:
        """Whether a group of so many members gets a compressor of its own."""
        return (
            window.takeover
            and members >= self.min_members
            and self.memory_bytes + window.compressor_bytes <= self._max_memory_bytes
        )

    def keeps(self, members: int) -> bool:
        """Whether a group that has a compressor keeps it.

        At half the size that gives one: a client that comes and goes does not move the group.
        """
        return members > 0 and 2 * members >= self.min_members

    def count(self, text: bytes, payload: bytes) -> None:
        """Count a message that was compressed."""
        self.messages += 1
        self.input_bytes += len(text)
        self.output_bytes += len(payload)

    def statistics(self) -> CompressionStatistics:
        """Return the account up to now."""
        return CompressionStatistics(
            compressors=self.compressors,
            memory_bytes=self.memory_bytes,
            messages=self.messages,
            input_bytes=self.input_bytes,
            output_bytes=self.output_bytes,
            full_flushes=self.full_flushes,
            skipped_bytes=self.skipped_bytes,
        )


class WebSocketDeflate(WebSocketJson):
    """JSON in WebSocket text frames, each message compressed by itself.

    The format of a client that is in no group, or in one that is too small for `GroupDeflate`.
    """

    __slots__ = ("_compression", "_compressor", "_last", "_window")

    def __init__(self, compression: Compression, window: Window) -> None:
        super().__init__(compression.timestamp)
        self._compression = compression
        self._window = window
        self._compressor: Compressor | None = None
        """Keeps nothing from one message to the next; made when it is first needed."""
        self._last = (b"", b"")
        """The last text and its frame: clients that are written to in turn, as over TLS, are often
        sent the same."""

    def for_group(self, members: int, *, has_newcomer: bool) -> WireFormat:  # noqa: ARG002
        """Return a format with a window of its own if the group is large enough."""
        compression = self._compression
        if compression.admits(self._window, members):
            return GroupDeflate(compression, self._window, self)
        return self

    def data(self, parts: Sequence[Part], positions: Positions) -> bytes:  # noqa: ARG002
        """Return the frames of data messages, uncompressed while the server is behind or busy."""
        compression = self._compression
        if compression.is_behind() or compression.is_busy():
            return _plain(self._compression, _texts(parts, compression.timestamp))
        return b"".join(map(self._frame, _texts(parts, compression.timestamp)))

    def _frame(self, text: bytes) -> bytes:
        compression = self._compression
        if len(text) < max(compression.min_message_bytes, SELF_CONTAINED_MIN_BYTES):
            return text_frame(text)
        last_text, frame = self._last
        if text == last_text:
            return frame
        if self._compressor is None:
            self._compressor = compression.compressor(self._window)
        payload = self._compressor.compress(text) + self._compressor.flush(zlib.Z_FULL_FLUSH)
        payload = payload.removesuffix(_FLUSH_END)
        compression.count(text, payload)
        frame = compressed_text_frame(payload) if len(payload) < len(text) else text_frame(text)
        self._last = text, frame
        return frame


class GroupDeflate(WebSocketJson):
    """JSON in WebSocket text frames, compressed with the window of one group.

    Every frame that it makes must be sent to all members that were there when it was made.
    """

    __slots__ = ("_alone", "_compression", "_compressor", "_needs_flush", "_window")

    def __init__(self, compression: Compression, window: Window, alone: WebSocketDeflate) -> None:
        """`alone` is the format of the members when they are in no group."""
        super().__init__(compression.timestamp)
        self._compression = compression
        self._window = window
        self._alone = alone
        self._compressor = compression.compressor(window)
        self._needs_flush = False
        """Whether some member has not received what is in the window."""
        compression.compressors += 1

    def for_group(self, members: int, *, has_newcomer: bool) -> WireFormat:
        """Keep the window while the group is large enough; a newcomer has nothing of it."""
        if self._compression.keeps(members):
            self._needs_flush |= has_newcomer
            return self
        self._compression.compressors -= 1
        self._compression.memory_bytes -= self._window.compressor_bytes
        return self._alone

    def data(self, parts: Sequence[Part], positions: Positions) -> bytes:  # noqa: ARG002
        """Return the frames of data messages, uncompressed while the server is behind."""
        compression = self._compression
        if compression.is_behind():
            return _plain(compression, _texts(parts, compression.timestamp))
        return b"".join(map(self._frame, _texts(parts, compression.timestamp)))

    def _frame(self, text: bytes) -> bytes:
        compression = self._compression
        if len(text) < compression.min_message_bytes:
            return text_frame(text)
        compressor = self._compressor
        start = b""
        if self._needs_flush:
            start = compressor.flush(zlib.Z_FULL_FLUSH)  # an empty block, part of the message
            self._needs_flush = False
            compression.full_flushes += 1
        payload = start + compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
        payload = payload.removesuffix(_FLUSH_END)
        compression.count(text, payload)
        return compressed_text_frame(payload)


def _texts(parts: Sequence[Part], timestamp: Callable[[], str]) -> Iterable[bytes]:
    return (parts[0][1],) if len(parts) == 1 else batch_texts(parts, timestamp)


def _plain(compression: Compression, texts: Iterable[bytes]) -> bytes:
    frames = b"".join(map(text_frame, texts))
    compression.skipped_bytes += len(frames)
    return frames
