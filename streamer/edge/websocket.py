"""One WebSocket connection: frames in, bytes out, and the way it ends.

trio-websocket is built from wsproto, and so is this. Its connection object is not used on the
server: it keeps a second task, a channel and the handshake for every client (23 KB, measured), and
sends each message through a lock and a task switch. wsproto's frame parser is what is worth having.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final, cast

import trio
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from streamer.edge.loop_budget import LoopBudget
from streamer.hub.fanout import FanOut
from streamer.hub.outbox import Outbox
from streamer.protocol import errors

_RECEIVE_BYTES: Final = 16 * 1024
_MAX_DISCARDED_BYTES: Final = 16 * 1024 * 1024
"""What a client may still send after our close before its connection is cut. To close with unread
bytes makes the kernel reset the connection, and the client might never see why."""


_NO_STATUS: Final = 1005
_NO_CLOSE_FRAME: Final = 1006
"""Codes that stand for what was not sent (RFC 6455, 7.4.1)."""


class ConnectionEndedError(Exception):
    """The connection is to end, for a reason that goes into the close frame."""

    def __init__(self, reason: errors.CloseReason) -> None:
        super().__init__(reason.reason)
        self.reason = reason


class PeerClosedError(Exception):
    """The peer closed the connection, with a close frame or (code 1006) without."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed by the peer with {code}")
        self.code = code


class MessageTooLargeError(Exception):
    """A message is larger than allowed."""


class WebSocket:
    """Reads messages, answers control frames, writes what the socket did not take at once."""

    __slots__ = (
        "_admit_frame",
        "_fanout",
        "_frames",
        "_loop_budget",
        "_max_message_bytes",
        "_on_pong",
        "_parts",
        "_parts_bytes",
        "_progress",
        "_stream",
        "last_received_seconds",
        "outbox",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        fanout: FanOut,
        outbox: Outbox,
        *,
        max_message_bytes: int,
        trailing: bytes,
        admit_frame: Callable[[], bool],
        on_pong: Callable[[bytes], None],
        loop_budget: LoopBudget,
    ) -> None:
        """Take over an open connection.

        `trailing` came behind the handshake. `admit_frame` is asked before a frame that is no
        message is dealt with: pings and empty fragments cost something, too.
        """
        self._stream = stream
        self._fanout = fanout
        self.outbox = outbox
        self._max_message_bytes = max_message_bytes
        self._admit_frame = admit_frame
        self._on_pong = on_pong
        self._loop_budget = loop_budget
        self._frames = FrameProtocol(client=False, extensions=[])
        self._frames.receive_bytes(trailing)
        self._parts: list[str | bytes] = []
        self._parts_bytes = 0
        self._progress: trio.Event | None = None
        self.last_received_seconds = trio.current_time()

    # Reading

    async def receive(self) -> None:
        """Wait for bytes from the peer. Raises PeerClosedError where it is gone."""
        try:
            data = await receive_some(self._stream, self.outbox.descriptor, self._loop_budget)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise PeerClosedError(_NO_CLOSE_FRAME)
        self.last_received_seconds = trio.current_time()
        self._frames.receive_bytes(data)

    def messages(self) -> Iterator[str | bytes]:
        """The whole messages received so far: text as str, binary as bytes. Pings are answered.

        Raises ConnectionEndedError where the peer broke a rule of RFC 6455, MessageTooLargeError,
        and PeerClosedError.
        """
        try:
            for frame in self._frames.received_frames():
                if frame.opcode is Opcode.PING:
                    if self._admit_frame():
                        pong = self.outbox.wire.pong(cast("bytes", frame.payload))
                        self.outbox.send_control(pong)
                elif frame.opcode is Opcode.CLOSE:
                    code, _ = cast("tuple[int, str]", frame.payload)
                    raise PeerClosedError(code)
                elif frame.opcode is Opcode.PONG:
                    self._on_pong(cast("bytes", frame.payload))
                else:
                    yield from self._assemble(
                        cast("str | bytes", frame.payload), finished=frame.message_finished
                    )
        except ParseFailed as error:
            invalid_text = error.code == errors.INVALID_UTF8.code
            raise ConnectionEndedError(
                errors.INVALID_UTF8 if invalid_text else errors.PROTOCOL_VIOLATION
            ) from error

    def _assemble(self, payload: str | bytes, *, finished: bool) -> Iterator[str | bytes]:
        # UTF-8 has at least a byte for each character, so this bounds what is kept; a message is
        # measured exactly once it is whole.
        self._parts_bytes += len(payload)
        if self._parts_bytes > self._max_message_bytes:
            raise MessageTooLargeError
        if not finished:
            if payload:
                self._parts.append(payload)
            else:
                self._admit_frame()
            return
        message = payload if not self._parts else self._join(payload)
        self._parts_bytes = 0
        if (
            isinstance(message, str)
            and not message.isascii()
            and len(message.encode()) > self._max_message_bytes
        ):
            raise MessageTooLargeError
        yield message

    def _join(self, last: str | bytes) -> str | bytes:
        parts, self._parts = [*self._parts, last], []
        if isinstance(last, str):
            return "".join(cast("list[str]", parts))
        return b"".join(cast("list[bytes]", parts))

    # Writing

    async def write_blocked(self) -> None:
        """Write what the outbox holds until all is out: the writer task of a full socket."""
        outbox = self.outbox
        try:
            if outbox.descriptor >= 0:
                while outbox.blocked and not outbox.closed:
                    await trio.lowlevel.wait_writable(outbox.descriptor)
                    self._fanout.resume(outbox)
                    self._advance()
            else:
                while data := self._fanout.take(outbox):
                    await self._stream.send_all(data)
                    self._advance()
                self._advance()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            outbox.fail(0)

    def _advance(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def wait_progress(self) -> None:
        """Until the writer task has written something more."""
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    # Ending

    async def finish(self, reason: errors.CloseReason) -> None:
        """Send a close frame and wait for the peer's end. Callers have a deadline."""
        self.outbox.send_control(self.outbox.wire.close(reason.code, reason.reason))
        await self.wait_written()
        await close_lingering(self._stream)

    async def wait_written(self) -> None:
        """Until nothing waits for the socket any more."""
        while self.outbox.blocked:
            await self.wait_progress()

    def answer_close(self, code: int) -> None:
        """Answer the peer's close frame; the server then closes first (RFC 6455, 7.1.1)."""
        if code != _NO_CLOSE_FRAME:
            code = 1000 if code == _NO_STATUS else code
            self.outbox.send_control(self.outbox.wire.close(code, ""))


async def receive_some(
    stream: trio.abc.Stream, descriptor: int, loop_budget: LoopBudget | None = None
) -> bytes:
    """Bytes from the peer, empty at its end; straight from the socket where there is one.

    Where the turn is long already, they are read in another one. Raises BrokenResourceError.
    """
    if descriptor < 0:
        data = bytes(await stream.receive_some(_RECEIVE_BYTES))
        if loop_budget is not None and loop_budget.is_long:
            await loop_budget.wait()
        return data
    # What a client sends is rare and small: to wait first is right nearly always, and leaves out
    # the attempt, the context managers and the checkpoint of a socket's own recv.
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        # Before the read: ten thousand reads alone would make a long turn.
        if loop_budget is not None and loop_budget.is_long:
            await loop_budget.wait()
        try:
            return os.read(descriptor, _RECEIVE_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise trio.BrokenResourceError from error


async def close_lingering(stream: trio.abc.Stream) -> None:
    """Close our side and read what the peer still sends, until it closes, too."""
    try:
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        discarded = 0
        while discarded < _MAX_DISCARDED_BYTES and (data := await stream.receive_some()):
            discarded += len(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
