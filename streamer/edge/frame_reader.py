"""Parse the frames that a client sends: RFC 6455, section 5, and RFC 7692, section 6.

wsproto's parser takes some 18 µs for each frame, and a read of 16 KiB can hold 2,340 frames of one
byte each, which held up the event loop for 40 ms. This one takes about 4 µs. It also bounds memory:
it keeps at most `max_message_bytes` of an unfinished message, and of a compressed one what arrived
and no inflater: that would be 40 KB for each client that stops in the middle of a message.
"""

from __future__ import annotations

import codecs
from typing import Final

from streamer.edge.inflate import InflateError, TooLargeError, inflate, largest_compressed
from streamer.protocol.errors import (
    INVALID_DEFLATE,
    INVALID_UTF8,
    PROTOCOL_VIOLATION,
    CloseReason,
)

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

NO_STATUS: Final = 1005
"""The code for a close frame without one (RFC 6455, 7.4.1)."""

Event = tuple[int, str | bytes]
"""An opcode and its payload.

TEXT (str) and BINARY (bytes) are whole messages, and CONTINUATION is a frame that does not finish
its message. The payload of CLOSE begins with its code.
"""

_FIN: Final = 0x80
_RESERVED_BITS: Final = 0x70
_RSV1: Final = 0x40
_OPCODE: Final = 0x0F
_CONTROL: Final = 0x08
_MASKED: Final = 0x80
_LARGEST_CONTROL: Final = 125
_MEDIUM: Final = 126
_MASK_BYTES: Final = 4

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class FrameError(Exception):
    """The bytes violate RFC 6455; `reason` is the close reason that names the rule."""

    def __init__(self, reason: CloseReason, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


class MessageTooLargeError(Exception):
    """A message is larger than allowed."""


class FrameReader:
    """Turns the bytes of one connection into messages and control frames.

    After `next_event` has raised, further bytes are discarded, as after `discard`.
    """

    __slots__ = (
        "_at",
        "_data",
        "_decoder",
        "_failed",
        "_is_compressed",
        "_is_last",
        "_mask",
        "_max_message_bytes",
        "_message",
        "_opcode",
        "_remaining",
        "inflates",
    )

    def __init__(self, *, max_message_bytes: int, inflates: bool = False) -> None:
        """`inflates`: whether the client may compress messages, each by itself."""
        self._max_message_bytes = max_message_bytes
        self.inflates = inflates
        self._is_compressed = False
        """Whether the current message is compressed."""
        self._data = b""
        self._at = 0
        """The index in `_data` at which the next frame begins."""
        self._opcode = 0
        """TEXT or BINARY while a message is not finished, else 0."""
        self._message: bytearray | None = None
        """The payload so far of a message that arrives in several pieces."""
        self._decoder: codecs.IncrementalDecoder | None = None
        """Validates the text of `_message` as it arrives."""
        self._remaining = 0
        """Payload bytes of the current data frame that are still to come."""
        self._mask = b""
        self._is_last = False
        """Whether the current data frame finishes its message."""
        self._failed = False

    def feed(self, data: bytes) -> None:
        """Add bytes from the client."""
        if not self._failed:
            self._data = self._data[self._at :] + data
            self._at = 0

    @property
    def has_data(self) -> bool:
        """Whether bytes remain that no event has been made of."""
        return self._at < len(self._data)

    def next_event(self) -> Event | None:
        """Return the next message or control frame; None if more bytes are needed.

        Raises FrameError and MessageTooLargeError, as early as the bytes show it.
        """
        try:
            return self._next_event()
        except UnicodeDecodeError as error:
            self.discard()
            raise FrameError(INVALID_UTF8, str(error)) from None
        except InflateError as error:
            self.discard()
            raise FrameError(INVALID_DEFLATE, str(error)) from None
        except TooLargeError:
            self.discard()
            raise MessageTooLargeError from None
        except (FrameError, MessageTooLargeError):
            self.discard()
            raise

    def discard(self) -> None:
        """Discard what has arrived and what follows, unparsed: there are no more events."""
        self._failed = True
        self._data, self._at, self._remaining = b"", 0, 0
        self._message = self._decoder = None

    def _next_event(self) -> Event | None:
        if self._remaining:
            return self._read_payload()
        data, at = self._data, self._at
        if len(data) - at < 2:
            return None
        first, second = data[at], data[at + 1]
        if first & _RESERVED_BITS:
            self._check_reserved_bits(first)
        if not second & _MASKED:
            raise _violation("a frame is not masked")
        is_last = bool(first & _FIN)
        if first & _CONTROL:
            return self._read_control(first & _OPCODE, second & ~_MASKED, is_whole=is_last)
        return self._read_data(first & _OPCODE, second & ~_MASKED, is_last=is_last)

    def _check_reserved_bits(self, first: int) -> None:
        """Check that RSV1 marks a message as compressed, and that nothing else is marked."""
        begins = TEXT <= first & _OPCODE <= BINARY
        if not self.inflates or first & _RESERVED_BITS != _RSV1 or not begins:
            raise _violation("a reserved bit is set")

    def _read_data(self, opcode: int, length: int, *, is_last: bool) -> Event | None:
        self._check_sequence(opcode)
        data = self._data
        if opcode:
            self._is_compressed = bool(data[self._at] & _RSV1)
        start = self._at + 2
        if length >= _MEDIUM:
            size = 2 if length == _MEDIUM else 8
            if len(data) < start + size:
                return None
            smallest = _MEDIUM if length == _MEDIUM else 1 << 16
            length = int.from_bytes(data[start : start + size])
            start += size
            if not smallest <= length < 1 << 63:
                raise _violation("a length is not written in the shortest way")
        limit = self._max_message_bytes
        if self._is_compressed:
            limit = largest_compressed(limit)
        if length + len(self._message or b"") > limit:
            raise MessageTooLargeError
        start += _MASK_BYTES
        if len(data) < start:
            return None
        mask = data[start - _MASK_BYTES : start]
        if is_last and opcode and len(data) >= start + length:
            self._at = start + length
            payload = _unmask(data[start : start + length], mask)
            if self._is_compressed:
                payload = inflate(payload, self._max_message_bytes)
            return opcode, payload.decode() if opcode == TEXT else payload
        self._at = start
        self._opcode = opcode or self._opcode
        self._remaining, self._mask, self._is_last = length, mask, is_last
        return self._read_payload()

    def _check_sequence(self, opcode: int) -> None:
        if opcode > BINARY:
            raise _violation(f"opcode {opcode} is reserved")
        if opcode and self._opcode:
            raise _violation("a message begins inside another")
        if not opcode and not self._opcode:
            raise _violation("a continuation of no message")

    def _read_control(self, opcode: int, length: int, *, is_whole: bool) -> Event | None:
        if opcode > PONG:
            raise _violation(f"opcode {opcode} is reserved")
        if not is_whole:
            raise _violation("a control frame is fragmented")
        if length > _LARGEST_CONTROL:
            raise _violation("a control frame is too long")
        start = self._at + 2 + _MASK_BYTES
        if len(self._data) < start + length:
            return None
        self._at = start + length
        payload = _unmask(
            self._data[start : start + length], self._data[start - _MASK_BYTES : start]
        )
        if opcode == CLOSE:
            _check_close(payload)
        return opcode, payload

    def _read_payload(self) -> Event | None:
        """Move the available payload of a data frame into the message."""
        chunk = self._data[self._at : self._at + self._remaining]
        self._at += len(chunk)
        self._remaining -= len(chunk)
        if self._message is None:
            self._message = bytearray()
            is_plain_text = self._opcode == TEXT and not self._is_compressed
            self._decoder = _new_utf8_decoder() if is_plain_text else None
        if chunk:
            payload = _unmask(chunk, self._mask)
            turn = len(chunk) % _MASK_BYTES
            self._mask = self._mask[turn:] + self._mask[:turn]
            if self._decoder is not None:
                self._decoder.decode(payload)
            self._message += payload
        if self._remaining:
            return None
        if not self._is_last:
            return CONTINUATION, b""
        message, opcode = self._message, self._opcode
        self._opcode, self._message = 0, None
        if self._is_compressed:
            payload = inflate(message, self._max_message_bytes)
            return opcode, payload.decode() if opcode == TEXT else payload
        if self._decoder is None:
            return opcode, bytes(message)
        self._decoder.decode(b"", True)
        self._decoder = None
        return opcode, message.decode()


def close_code(payload: bytes) -> int:
    """Return the close code in the payload of a CLOSE event."""
    return int.from_bytes(payload[:2]) if payload else NO_STATUS


def _violation(problem: str) -> FrameError:
    return FrameError(PROTOCOL_VIOLATION, problem)


def _unmask(payload: bytes, mask: bytes) -> bytes:
    length = len(payload)
    key = (mask * (length // _MASK_BYTES + 1))[:length]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(length)


def _check_close(payload: bytes) -> None:
    """Check the code and the reason of a close frame (RFC 6455, 5.5.1 and 7.4)."""
    if not payload:
        return
    code = close_code(payload)
    may_be_sent = 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
    if len(payload) < 2 or not may_be_sent:
        raise _violation("a close frame has no valid code")
    payload[2:].decode()
