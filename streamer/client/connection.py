"""One connection: its greeting, its requests each with its answer, and how it ended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, Self, TypeVar

import attrs
import trio
import trio_websocket

from streamer.client.decode import Message, decode_server
from streamer.client.errors import ClientError, ConnectionLostError, DecodeError, RequestError
from streamer.client.messages import Error
from streamer.protocol import messages
from streamer.protocol.codec import encode_request

ABNORMAL: Final = 1006
"""No close frame came (RFC 6455, 7.1.5)."""

Answer = (
    messages.Subscribed
    | messages.Unsubscribed
    | messages.Reconnected
    | messages.Pong
    | messages.TokenRefreshed
    | Error
)
AnswerT = TypeVar("AnswerT", bound=Answer)


class Owner(Protocol):
    """The client whose connection it is."""

    room: trio.lowlevel.ParkingLot
    """Where the reader waits while there is none."""

    @property
    def has_room(self) -> bool:
        """Whether more may be read."""

    def on_request(self, request: messages.ClientMessage) -> None:
        """A request is about to be sent."""

    def on_message(self, message: Message, *, is_answer: bool) -> None:
        """A message has come."""


@attrs.frozen
class Ending:
    """How a connection ended."""

    code: int
    """Of WebSocket."""
    reason: str
    failure: ClientError | None = None
    """Why there is no coming back."""

    @classmethod
    def of(cls, closed: trio_websocket.ConnectionClosed) -> Self:
        """That which trio-websocket tells of."""
        assert closed.reason is not None  # it is set before this is raised
        return cls(closed.reason.code, closed.reason.reason or "the connection was cut")

    def __str__(self) -> str:
        return f"{self.reason} ({self.code})"


@attrs.define(eq=False)
class _Question:
    answered: trio.Event = attrs.field(factory=trio.Event)
    answer: Answer | None = None
    """None once answered: it never will be."""


class Connection:
    """An open WebSocket, from the server's greeting to its end."""

    def __init__(self, socket: trio_websocket.WebSocketConnection, owner: Owner) -> None:
        self._socket = socket
        self._owner = owner
        self._ids = itertools.count(1)
        self._questions: dict[messages.RequestId, _Question] = {}
        self._outgoing, self._to_write = trio.open_memory_channel[str](math.inf)
        self._scope = trio.CancelScope()
        self._ending: Ending | None = None
        self._is_held_up = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._ending is not None

    async def receive_greeting(self) -> messages.Connected:
        """The first message. Raises trio_websocket.ConnectionClosed and DecodeError."""
        text = await self._socket.get_message()
        (message, *_) = _decode(text)
        if not isinstance(message, messages.Connected):
            raise DecodeError(f"the first message is no `connected`: {text!r:.200}")
        return message

    async def run(
        self,
        restore: Callable[[], Awaitable[None]],
        *,
        heartbeat_interval_seconds: float,
        pong_timeout_seconds: float,
    ) -> Ending:
        """Read, write and keep alive until the end."""
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
            for question in self._questions.values():
                question.answered.set()
        return self._ending

    def fail(self, error: ClientError) -> None:
        """End it with an error."""
        self._end(Ending(ABNORMAL, str(error), error))

    def _end(self, ending: Ending) -> None:
        self._ending = self._ending or ending
        self._scope.cancel()

    async def _read(self) -> None:
        try:
            while True:
                # An answer may be behind what there is no room for: it must be read.
                while not self._owner.has_room and not self._questions:
                    self._is_held_up = True
                    await self._owner.room.park()
                self._is_held_up = False
                for message in _decode(await self._socket.get_message()):
                    self._owner.on_message(message, is_answer=self._take_answer(message))
        except trio_websocket.ConnectionClosed as closed:
            self._end(Ending.of(closed))
        except DecodeError as error:
            self.fail(error)

    async def _write(self) -> None:
        """Write what is asked: a task of its own, so that a caller who gives up cuts no frame."""
        try:
            async for text in self._to_write:
                await self._socket.send_message(text)
        except trio_websocket.ConnectionClosed:
            pass  # the reader is told, too, after what came before

    async def _keep_alive(self, interval_seconds: float, timeout_seconds: float) -> None:
        """Find out when the server is gone without a word: TCP alone may take hours to."""
        try:
            while True:
                await trio.sleep(interval_seconds)
                with trio.move_on_after(timeout_seconds) as patience:
                    await self._socket.ping()
                # Behind messages that are not read for want of room a pong is not seen.
                if patience.cancelled_caught and not self._is_held_up:
                    self._end(Ending(ABNORMAL, "the server did not answer a ping"))
        except trio_websocket.ConnectionClosed:
            pass

    async def ask(self, message: messages.ClientMessage, answer_type: type[AnswerT]) -> AnswerT:
        """Send a request and wait for its answer.

        Raises RequestError where that is an error, and ConnectionLostError.
        """
        message = attrs.evolve(message, request_id=next(self._ids))
        assert message.request_id is not None
        question = self._questions[message.request_id] = _Question()
        try:
            if self.has_ended:
                raise ConnectionLostError("the connection is lost")
            self._owner.on_request(message)
            self._owner.room.unpark_all()
            self._outgoing.send_nowait(encode_request(message))
            await question.answered.wait()
        finally:
            self._questions.pop(message.request_id, None)
        answer = question.answer
        if isinstance(answer, Error):
            raise RequestError(answer.code, answer.message, answer.details)
        if not isinstance(answer, answer_type):
            raise ConnectionLostError(f"no answer to {message.type}")
        return answer

    def _take_answer(self, message: Message) -> bool:
        """Hand an answer to who waits for it; False: it is none, or nobody does any more."""
        if not isinstance(message, Answer):
            return False
        request_id = message.request_id
        if request_id is None and isinstance(message, Error):
            # A message that the server did not read, over the rate limit: answers come in order.
            request_id = next(iter(self._questions), None)
        question = None if request_id is None else self._questions.pop(request_id, None)
        if question is None:
            return False
        question.answer = message
        question.answered.set()
        return True


def _decode(text: str | bytes) -> list[Message]:
    if isinstance(text, bytes):
        raise DecodeError(f"a binary message: {text[:40]!r}")
    return decode_server(text)
