"""One WebSocket connection: messages in, bytes out, and its end.

trio-websocket's connection object is not used on the server: it keeps a second task, a channel and
the handshake for every client (23 KB, measured), and sends each message through a lock and a task
switch.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios
from contextlib import suppress
from typing import Final, cast

import attrs
import trio

from streamer.edge import frame_reader
from streamer.edge.frame_reader import FrameError, FrameReader, MessageTooLargeError
from streamer.edge.limits import RateLimiter
from streamer.edge.loop_budget import LoopBudget
from streamer.edge.tls import TlsStream
from streamer.edge.writer import BlockedWriter
from streamer.hub.fanout import FanOut
from streamer.hub.outbox import Outbox
from streamer.protocol import errors

_RECEIVE_BYTES: Final = 16 * 1024

_LIGHT_READ_BYTES: Final = 4 * 1024
"""After a read of more than this the next one may hold hundreds of frames, too: it waits behind the
reads of clients that send little, when turns are long."""

_MAX_DISCARDED_BYTES: Final = 16 * 1024 * 1024
"""Bytes that a client may send after our close frame before its connection is cut. Closing a socket
with unread bytes makes the kernel reset the connection, and the client might never see the close
frame."""

NO_CLOSE_FRAME: Final = 1006
"""The code for a connection that ended without a close frame (RFC 6455, 7.4.1)."""


class ConnectionEndedError(Exception):
    """The connection is to be closed, with a reason for the close frame."""

    def __init__(self, reason: errors.CloseReason) -> None:
        super().__init__(reason.reason)
        self.reason = reason


class PeerClosedError(Exception):
    """The peer closed the connection, with a close frame or (code 1006) without."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed by the peer with {code}")
        self.code = code


@attrs.frozen
class Pong:
    """A pong from the client, with the payload of the ping that it answers."""

    payload: bytes


class WebSocket(BlockedWriter):
    """Reads messages, answers pings, and writes bytes that the socket did not take at once."""

    __slots__ = (
        "_limiter",
        "_max_unread_bytes",
        "_read_bytes",
        "_reader",
        "is_held_up",
        "last_received_seconds",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        fanout: FanOut,
        outbox: Outbox,
        *,
        max_message_bytes: int,
        inflates: bool,
        max_unread_bytes: int,
        trailing: bytes,
        limiter: RateLimiter,
        loop_budget: LoopBudget,
    ) -> None:
        """Take over an open connection; `trailing` are the bytes after the handshake.

        `inflates`: whether the client may compress its messages.
        """
        super().__init__(stream, fanout, outbox, loop_budget)
        self._max_unread_bytes = max_unread_bytes
        self._limiter = limiter
        self._reader = FrameReader(max_message_bytes=max_message_bytes, inflates=inflates)
        self._reader.feed(trailing)
        outbox.traffic.received_bytes += len(trailing)
        self.last_received_seconds = self.last_written_seconds
        """When bytes were last received, on trio's clock."""
        self._read_bytes = len(trailing)
        """The size of the last read."""
        self.is_held_up = False
        """Whether the socket is not read, since the client does not read the answers to pings."""

    # Reading

    async def receive(self) -> str | bytes | Pong:
        """Wait for the next message (text as str, binary as bytes) or pong.

        Pings are answered; if the client does not read its answers, nothing more is read until it
        does. Every frame counts against the rate limit; messages and pongs are counted by the
        caller. Raises ConnectionEndedError if the peer violates RFC 6455 or still sends after too
        many refusals, MessageTooLargeError, and PeerClosedError.
        """
        was_read_now = False
        while True:
            try:
                event = self._reader.next_event()
            except FrameError as error:
                raise ConnectionEndedError(error.reason) from None
            if event is None:
                await self._read_more()
                was_read_now = True
                continue
            if was_read_now:
                was_read_now = False
            elif self._loop_budget.is_long:
                # A read can hold thousands of frames, and all clients' together make a long turn.
                await self._loop_budget.wait(is_heavy=self._reads_much)
            opcode, payload = event
            if opcode in (frame_reader.TEXT, frame_reader.BINARY):
                return payload
            control = cast("bytes", payload)
            if opcode == frame_reader.CLOSE:
                raise PeerClosedError(frame_reader.close_code(control))
            if opcode == frame_reader.PONG:
                return Pong(control)
            if self.admit() and opcode == frame_reader.PING:
                await self._answer_ping(control)

    async def _answer_ping(self, payload: bytes) -> None:
        self.outbox.send_control(self.outbox.wire.pong(payload))
        if not self.has_room:
            # A pong is an answer, too, and memory: a client that does not read is not read either.
            self.is_held_up = True
            await self.wait_room()
            self.is_held_up = False

    def admit(self) -> bool:
        """Count a frame against the rate limit; return whether it is within it.

        Raises ConnectionEndedError after too many refusals.
        """
        is_admitted = self._limiter.allow(trio.current_time())
        if self._limiter.is_abused:
            raise ConnectionEndedError(errors.ABUSE)
        return is_admitted

    async def _read_more(self) -> None:
        try:
            await self._read_some()
        except trio.BrokenResourceError:
            raise PeerClosedError(NO_CLOSE_FRAME) from None
        if not self._read_bytes:
            raise PeerClosedError(NO_CLOSE_FRAME)
        self.last_received_seconds = trio.current_time()

    async def _read_some(self) -> None:
        """Read bytes for the reader: none at the end. Raises BrokenResourceError."""
        data = await receive_some(
            self._stream,
            self.outbox.descriptor,
            self._loop_budget,
            is_heavy=self._reads_much,
        )
        self._read_bytes = len(data)
        self.outbox.traffic.received_bytes += len(data)
        self._reader.feed(data)

    @property
    def _reads_much(self) -> bool:
        return self._read_bytes > _LIGHT_READ_BYTES

    @property
    def has_received_more(self) -> bool:
        """Whether bytes of further frames have been read already."""
        return self._reader.has_data

    @property
    def has_unread(self) -> bool:
        """Whether the socket has bytes that were not read yet; under TLS, encrypted ones."""
        return has_unread(self.outbox.descriptor)

    # Room for answers

    @property
    def has_room(self) -> bool:
        """Whether the client has read enough of its answers to be sent more."""
        return self.outbox.control_bytes <= self._max_unread_bytes

    async def wait_room(self) -> None:
        """Wait until the client has read enough of its answers to be sent more."""
        while not self.has_room:
            await self.wait_progress()

    # Ending

    async def finish(self, reason: errors.CloseReason) -> None:
        """Send a close frame and wait until the peer has closed, too. Callers set a deadline."""
        self.outbox.send_control(self.outbox.wire.close(reason.code, reason.reason))
        if reason is errors.ABUSE:
            # What made it abuse may go on, and to look for a close frame in a read of one-byte
            # frames takes 10 ms. The client's answer is not needed: it sees ours, and the end.
            self._reader.discard()
        await self.wait_written()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await send_eof(self._stream)
            await self._discard_until_close()

    async def _discard_until_close(self) -> None:
        discarded = 0
        while discarded < _MAX_DISCARDED_BYTES:
            try:
                while (event := self._reader.next_event()) is not None:
                    # Some clients wait for the server to close first (RFC 6455, 7.1.1).
                    if event[0] == frame_reader.CLOSE:
                        return
                    if self._loop_budget.is_long:
                        await self._loop_budget.wait(is_heavy=self._reads_much)
            except (FrameError, MessageTooLargeError):
                pass  # from now on the reader discards
            await self._read_some()
            if not self._read_bytes:
                return
            discarded += self._read_bytes

    async def answer_close(self, code: int) -> None:
        """Answer the peer's close frame: the server then closes first (RFC 6455, 7.1.1).

        Waits until the answer is written; callers set a deadline.
        """
        code = 1000 if code == frame_reader.NO_STATUS else code
        self.outbox.send_control(self.outbox.wire.close(code, ""))
        await self.wait_written()


def has_unread(descriptor: int) -> bool:
    """Whether a socket has bytes that were not read yet; False without a socket."""
    if descriptor < 0:
        return False
    size = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, size)
    except OSError:
        return False
    return size[0] > 0


def read_available(descriptor: int) -> bytes | None:
    """Return bytes that a socket has received, empty at its end; None if there are none yet.

    Raises BrokenResourceError.
    """
    try:
        return os.read(descriptor, _RECEIVE_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        raise trio.BrokenResourceError from error


async def receive_some(
    stream: trio.abc.Stream,
    descriptor: int,
    loop_budget: LoopBudget | None = None,
    *,
    is_heavy: bool = False,
) -> bytes:
    """Return bytes from the peer, empty at its end; read directly from the socket if possible.

    If the turn is already long, they are read in a later one; `is_heavy` says whether they probably
    take milliseconds to parse. Raises BrokenResourceError.
    """
    if descriptor < 0 or type(stream) is TlsStream:
        data = bytes(await stream.receive_some(_RECEIVE_BYTES))
        if loop_budget is not None and loop_budget.is_long:
            await loop_budget.wait(is_heavy=is_heavy)
        return data
    # Clients send rarely and little, so waiting first is nearly always right, and saves the
    # attempt, the context managers and the checkpoint of a socket's own recv.
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        # Before the read: ten thousand reads would make a long turn.
        if loop_budget is not None and loop_budget.is_long:
            await loop_budget.wait(is_heavy=is_heavy)
        received = read_available(descriptor)
        if received is not None:
            return received


async def close_lingering(stream: trio.abc.Stream) -> None:
    """Close this side and discard the peer's bytes until it closes, too."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await send_eof(stream)
        discarded = 0
        while discarded < _MAX_DISCARDED_BYTES and (data := await stream.receive_some()):
            discarded += len(data)


async def send_eof(stream: trio.abc.Stream) -> None:
    """Close this side of the TCP connection, under TLS if there is any.

    A client that waits for the server to close first would otherwise wait for ever.
    """
    if isinstance(stream, trio.abc.HalfCloseableStream):
        await stream.send_eof()
