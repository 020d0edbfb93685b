"""One connection: its greeting, its requests with their answers, and its end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import attrs
import trio

from streamer.client.decode import Message, decode_server
from streamer.client.endings import ABNORMAL, Ending
from streamer.client.errors import ClientError, ConnectionLostError, DecodeError, RequestError
from streamer.client.messages import Error, Unreadable
from streamer.client.websocket import WebSocket, WebSocketClosedError
from streamer.protocol import messages
from streamer.protocol.codec import encode_request
from streamer.protocol.errors import ErrorCode

Answer = (
    messages.Subscribed
    | messages.Unsubscribed
    | messages.Reconnected
    | messages.Pong
    | messages.ConnectionOptions
    | messages.Authenticated
    | messages.TokenRefreshed
    | Error
    | Unreadable
)
AnswerT = TypeVar("AnswerT", bound=Answer)

_ABOUT_THE_CONNECTION: Final = frozenset({ErrorCode.INVALID_TOKEN, ErrorCode.TOKEN_EXPIRED})
"""Codes of errors that come without a request."""


class Owner(Protocol):
    """The client to which the connection belongs."""

    room: trio.lowlevel.ParkingLot
    """Unparked when the buffer has room again, for which the reader waits."""

    @property
    def has_room(self) -> bool:
        """Whether more may be read."""

    def on_request(self, request: messages.ClientMessage) -> None:
        """Take note that a request is about to be sent."""

    def on_message(self, message: Message, *, is_answer: bool) -> None:
        """Take a message that was received; `is_answer`: a request waits for it."""


@attrs.define(eq=False)
class _PendingRequest:
    done: trio.Event = attrs.field(factory=trio.Event)
    answer: Answer | None = None
    """None after `done` is set: the connection ended first."""


class Connection:
    """An open WebSocket, from the server's greeting to its end."""

    def __init__(self, socket: WebSocket, owner: Owner) -> None:
        self._socket = socket
        self._owner = owner
        self._ids = itertools.count(1)
        self._pending: dict[messages.RequestId, _PendingRequest] = {}
        self._outgoing, self._to_write = trio.open_memory_channel[str](math.inf)
        self._scope = trio.CancelScope()
        self._ending: Ending | None = None
        self._waits_for_room = False

    @property
    def has_ended(self) -> bool:
        """Whether no request can be sent any more."""
        return self._ending is not None

    async def receive_greeting(self) -> messages.Connected:
        """Return the server's `connected`; an `error` may precede or replace it.

        Raises WebSocketClosedError, and DecodeError for any other message.
        """
        while True:
            text = await self._socket.get_message()
            for message in _decode(text):
                match message:
                    case messages.Connected():
                        return message
                    case Error() | messages.Disconnected() | messages.ServerShutdown():
                        self._owner.on_message(message, is_answer=False)
                    case _:
                        raise DecodeError(f"the first message is no `connected`: {text!r:.200}")

    async def run(
        self,
        restore: Callable[[], Awaitable[None]],
        *,
        heartbeat_interval_seconds: float,
        pong_timeout_seconds: float,
    ) -> Ending:
        """Read, write and send pings until the connection ends; `restore` runs meanwhile."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(
                        self._keep_alive, heartbeat_interval_seconds, pong_timeout_seconds
                    )
                    nursery.start_soon(restore)
                    await self._read()
        finally:
            self._ending = self._ending or Ending(ABNORMAL, "left")
            for request in self._pending.values():
                request.done.set()
        return self._ending

    def fail(self, error: ClientError) -> None:
        """End the connection, and the client with it."""
        self.end(Ending(ABNORMAL, str(error), error))

    def end(self, ending: Ending) -> None:
        """End the connection, unless it has ended already."""
        self._ending = self._ending or ending
        self._scope.cancel()

    async def _read(self) -> None:
        try:
            while True:
                # An answer may come after data for which there is no room, which is then read.
                while not self._owner.has_room and not self._pending:
                    self._waits_for_room = True
                    await self._owner.room.park()
                self._waits_for_room = False
                for message in _decode(await self._socket.get_message()):
                    self._owner.on_message(message, is_answer=self._take_answer(message))
        except WebSocketClosedError as closed:
            self.end(Ending.of(closed))

    async def _write(self) -> None:
        """Write requests, in a separate task, so that a cancelled caller does not cut a frame."""
        try:
            async for text in self._to_write:
                await self._socket.send_message(text)
        except WebSocketClosedError:
            pass  # the reader notices it, too, after the messages before

    async def _keep_alive(self, interval_seconds: float, timeout_seconds: float) -> None:
        """Send pings to detect a server that vanished: TCP alone may take hours."""
        try:
            while True:
                await trio.sleep(interval_seconds)
                reads = self._socket.reads
                with trio.move_on_after(timeout_seconds) as patience:
                    await self._socket.ping()
                if patience.cancelled_caught and self._is_silent_since(reads):
                    self.end(Ending(ABNORMAL, "the server did not answer a ping"))
        except WebSocketClosedError:
            pass

    def _is_silent_since(self, reads: int) -> bool:
        """Whether a ping is unanswered because of the server, after so many reads before it.

        A pong comes after all that is on its way already, which may take long on a slow line, and
        is not read while the reader waits for room. If the ping itself is cut, no other can follow.
        """
        socket = self._socket
        return socket.is_cut or (socket.reads == reads and not self._waits_for_room)

    async def ask(self, message: messages.ClientMessage, answer_type: type[AnswerT]) -> AnswerT:
        """Send a request and wait for its answer.

        Raises RequestError if the answer is an `error`, DecodeError if it cannot be read, and
        ConnectionLostError.
        """
        message = attrs.evolve(message, request_id=next(self._ids))
        assert message.request_id is not None
        request = self._pending[message.request_id] = _PendingRequest()
        try:
            if self.has_ended:
                raise ConnectionLostError("the connection is lost")
            self._owner.on_request(message)
            self._owner.room.unpark_all()
            self._outgoing.send_nowait(encode_request(message))
            await request.done.wait()
        finally:
            self._pending.pop(message.request_id, None)
        match request.answer:
            case Error() as error:
                raise RequestError(error.code, error.message, error.details)
            case None:
                raise ConnectionLostError(f"no answer to {message.type}")
            case answer if isinstance(answer, answer_type):
                return answer
            case other:
                problem = other.problem if isinstance(other, Unreadable) else f"it is {other.type}"
                raise DecodeError(f"the answer to {message.type} cannot be read: {problem}")

    def send_nowait(self, message: messages.ClientMessage) -> None:
        """Send a request whose answer nobody waits for."""
        message = attrs.evolve(message, request_id=next(self._ids))
        self._owner.on_request(message)
        self._outgoing.send_nowait(encode_request(message))

    def _take_answer(self, message: Message) -> bool:
        """Hand an answer to its request; False if no request waits for it."""
        if not isinstance(message, Answer):
            return False
        request_id = message.request_id
        is_anonymous = isinstance(message, Error) and message.code not in _ABOUT_THE_CONNECTION
        if request_id is None and is_anonymous:
            # The server did not read the request, over the rate limit: answers come in order.
            request_id = next(iter(self._pending), None)
        request = None if request_id is None else self._pending.pop(request_id, None)
        if request is None:
            return False
        request.answer = message
        request.done.set()
        return True


def _decode(text: str | bytes) -> list[Message]:
    if isinstance(text, bytes):
        return [Unreadable(problem="a binary message", text=repr(text))]
    return decode_server(text)
