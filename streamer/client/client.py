"""The client: subscriptions that outlive connections, and one stream of what they bring."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self
from urllib.parse import urlsplit

import attrs
import trio
import trio_websocket

from streamer.client.backoff import Backoff
from streamer.client.connection import ABNORMAL, AnswerT, Connection, Ending
from streamer.client.decode import Message
from streamer.client.dial import Dialer, Token
from streamer.client.errors import (
    ClientError,
    ClosedError,
    ConnectError,
    ConnectionLostError,
    DecodeError,
    Rejected,
    SubscriptionRejectedError,
    rejections,
)
from streamer.client.messages import Data, Error, Gap, Streamed
from streamer.client.requests import Limits, Options, subscribe_requests, unsubscribe_requests
from streamer.client.restore import restore
from streamer.client.verify import Account, Verifier, Violation
from streamer.protocol import errors, messages
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic
from streamer.urls import redact

DEFAULT_URL: Final = "ws://127.0.0.1:8765/v1/ws"

Event = Data | Gap | Error
"""What a client iterates over: data, gaps in it, and errors that answer no request."""

_FINAL: Final = frozenset(
    reason.code
    for reason in (errors.PROTOCOL_VIOLATION, errors.INVALID_UTF8, errors.POLICY, errors.TOO_LARGE)
)
"""Close codes after which a client does not come back."""


@attrs.frozen
class ClientStatistics:
    """What a client holds and has been through."""

    connected: bool
    session_id: str
    connections: int
    """Made so far."""
    subscriptions: int
    buffered_messages: int
    last_problem: str | None
    """Why the last connection ended, or the last attempt failed."""


class Client:
    """What `open_client` gives: it reconnects by itself and goes on where it was.

    Iterate over it for what arrives, batches unpacked, in order. When the server cannot be reached
    it waits; where there is no coming back, the iteration ends with a ClientError. A consumer that
    falls behind is not read for beyond `buffer_messages`: then the server merges for it, or in
    mode all in the end closes.
    """

    def __init__(
        self,
        dialer: Dialer,
        *,
        backoff: Backoff,
        buffer_messages: int,
        pong_timeout_seconds: float,
        on_violation: Callable[[Violation], None] | None,
    ) -> None:
        self._dialer = dialer
        self._backoff = backoff
        self._buffer_messages = buffer_messages
        self._pong_timeout_seconds = pong_timeout_seconds
        self._verifier = Verifier(on_violation)
        self._wanted: dict[Topic, Options] = {}
        self._inbox: deque[Event] = deque()
        self._arrival = trio.lowlevel.ParkingLot()
        self.room = trio.lowlevel.ParkingLot()
        self._change = trio.lowlevel.ParkingLot()
        """Of `_connection` and `_failure`."""
        self._connection: Connection | None = None
        """One that is open, and whose subscriptions are restored."""
        self._failure: ClientError | None = None
        self._conversation: trio.CancelScope | None = None
        self._tasks = trio.CancelScope()
        self._started = False
        self._leaving = False
        self._session_id = ""
        self._limits: Limits = {}
        self._connections = 0
        self._retry_after_seconds: float | None = None
        self._last_problem: str | None = None

    # What arrives

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await self.receive()

    async def receive(self) -> Event:
        """The next message. Raises ClientError where none will come any more.

        It waits only where none has arrived: a checkpoint for each would cost more than the rest.
        """
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                await self._arrival.park()

    def receive_nowait(self) -> Event:
        """The next message that has arrived. Raises trio.WouldBlock where none has."""
        if self._inbox:
            event = self._inbox.popleft()
            self.room.unpark_all()
            return event
        if self._failure is not None:
            raise self._failure
        raise trio.WouldBlock

    def account(self) -> Account:
        """What was received so far, and whether it adds up: what is still buffered is counted."""
        return self._verifier.account()

    def position(self, topic: Topic | str) -> Position | None:
        """The last position received of a topic."""
        return self._verifier.position(_topic(topic))

    def statistics(self) -> ClientStatistics:
        """The state of the client now."""
        return ClientStatistics(
            connected=self._connection is not None,
            session_id=self._session_id,
            connections=self._connections,
            subscriptions=len(self._wanted),
            buffered_messages=len(self._inbox),
            last_problem=self._last_problem,
        )

    # What is asked

    async def subscribe(
        self,
        topics: Iterable[Topic | str],
        *,
        kinds: Iterable[Kind | str] | None = None,
        mode: Mode | str = Mode.LATEST,
        max_rate: float | None = None,
        snapshot: bool = True,
    ) -> None:
        """Subscribe to topics such as `stock:005930`, and hold them over reconnects.

        `kinds` are those wanted of the kinds that the topics carry, `max_rate` is in messages per
        second of each topic and kind. Waits for the answer, through reconnects where need be;
        meanwhile more than `buffer_messages` may be buffered.
        Raises ValueError for what no server would take, SubscriptionRejectedError where it takes
        some topics only, RequestError, and what ends the client.
        """
        options = Options(
            kinds=None if kinds is None else frozenset(map(Kind, kinds)),
            mode=Mode(mode),
            max_rate=max_rate,
            snapshot=snapshot,
        )
        wanted = dict.fromkeys(map(_topic, topics), options)
        rejected: list[Rejected] = []
        for request in list(subscribe_requests(wanted, self._limits)):
            answer = await self._ask(request, messages.Subscribed)
            for target in answer.targets:
                self._wanted[Topic(answer.subscription_type, target)] = options
            rejected += rejections(answer)
        if rejected:
            raise SubscriptionRejectedError(rejected)

    async def unsubscribe(self, topics: Iterable[Topic | str]) -> None:
        """Give topics up. Raises ValueError, RequestError, and what ends the client."""
        given_up = [_topic(topic) for topic in topics]
        for topic in given_up:
            self._wanted.pop(topic, None)
        for request in unsubscribe_requests(given_up, self._limits):
            await self._ask(request, messages.Unsubscribed)

    async def _ask(self, request: messages.ClientMessage, answer_type: type[AnswerT]) -> AnswerT:
        while True:
            connection = await self._wait_connected()
            try:
                return await connection.ask(request, answer_type)
            except ConnectionLostError:
                continue

    async def _wait_connected(self) -> Connection:
        # One that has ended is still there until its socket is closed.
        while self._connection is None or self._connection.has_ended:
            if self._failure is not None:
                raise self._failure
            await self._change.park()
        return self._connection

    # What a connection reports

    @property
    def has_room(self) -> bool:
        """Whether the buffer takes more."""
        return len(self._inbox) < self._buffer_messages

    def on_request(self, request: messages.ClientMessage) -> None:
        """Show the verifier what is asked."""
        self._verifier.sent(request)

    def on_message(self, message: Message, *, is_answer: bool) -> None:
        """Check a message, and put it where it belongs."""
        topic = self._verifier.receive(message)
        match message:
            case Streamed():
                message.place(topic)
                self._deliver(message)
            case Data() | Gap():
                self._deliver(message)
            case Error(request_id=None) if not is_answer:
                self._deliver(message)
            case messages.ServerShutdown():
                self._retry_after_seconds = message.retry_after_ms / 1000
            case _:
                pass

    def _deliver(self, event: Event) -> None:
        self._inbox.append(event)
        self._arrival.unpark()

    # Connections

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until `leave`.

        Raises ClientError before it is started; afterwards `receive` does.
        """
        with self._tasks:
            try:
                while True:
                    began_at = trio.current_time()
                    ending = await self._dialer.call(partial(self._converse, task_status))
                    if self._leaving:
                        return
                    self._last_problem = str(ending)
                    if trio.current_time() - began_at > self._backoff.max_seconds:
                        self._backoff.reset()
                    delay_seconds = self._delay_seconds(ending)
                    if not self._started:
                        raise ConnectError(f"cannot connect to {self._dialer.url}: {ending.reason}")
                    await trio.sleep(delay_seconds)
            except ClientError as error:
                if not self._started:
                    raise
                self._last_problem = str(error)
                self._fail(error)

    def _fail(self, error: ClientError) -> None:
        """From here on, whoever waits for something gets the error."""
        self._failure = error
        self._arrival.unpark_all()
        self._change.unpark_all()

    def leave(self) -> None:
        """End the connection in good order, or what is done to get one."""
        self._leaving = True
        if self._failure is None:
            self._fail(ClientError("the client has been closed"))
        if self._conversation is None:
            self._tasks.cancel()
        else:
            self._conversation.cancel()

    def _delay_seconds(self, ending: Ending) -> float:
        """How long to stay away. Raises ClientError where there is no coming back."""
        needs_token = ending.code == errors.UNAUTHENTICATED.code
        if ending.failure is not None:
            raise ending.failure
        if ending.code in _FINAL or (needs_token and not callable(self._dialer.token)):
            raise ClosedError(ending.code, ending.reason)
        delay, self._retry_after_seconds = self._retry_after_seconds, None
        return self._backoff.next_delay() if delay is None else delay

    async def _converse(
        self,
        task_status: trio.TaskStatus[None],
        socket: trio_websocket.WebSocketConnection,
    ) -> Ending:
        """From the greeting to the end."""
        ending = Ending(ABNORMAL, "left")
        # A scope of its own: what is cancelled inside it is still closed as it should be.
        with trio.CancelScope() as self._conversation:
            connection = Connection(socket, self)
            greeting = await self._receive_greeting(connection)
            if isinstance(greeting, Ending):
                ending = greeting
            else:
                former_session_id, self._session_id = self._session_id, greeting.session_id
                self._limits = greeting.limits
                self._connections += 1
                self._verifier.disconnected()
                ending = await connection.run(
                    partial(self._restore, connection, former_session_id, task_status),
                    heartbeat_interval_seconds=greeting.heartbeat_interval,
                    pong_timeout_seconds=self._pong_timeout_seconds,
                )
        self._conversation = self._connection = None
        return ending

    async def _receive_greeting(self, connection: Connection) -> messages.Connected | Ending:
        timeout_seconds = self._dialer.connect_timeout_seconds
        try:
            with trio.fail_after(timeout_seconds):
                return await connection.receive_greeting()
        except trio.TooSlowError:
            return Ending(ABNORMAL, f"no greeting within {timeout_seconds:g} s")
        except trio_websocket.ConnectionClosed as closed:
            return Ending.of(closed)
        except DecodeError as error:
            return Ending(ABNORMAL, str(error), error)

    # Restoring

    async def _restore(
        self,
        connection: Connection,
        former_session_id: str,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Get the subscriptions back, each from where it was, and let requests through."""
        try:
            if self._wanted:
                session_id = await restore(
                    connection,
                    former_session_id,
                    dict(self._wanted),
                    limits=self._limits,
                    position=self._verifier.position,
                )
                self._session_id = session_id or self._session_id
        except ConnectionLostError:
            return
        except ClientError as error:
            connection.fail(error)
            return
        self._connection = connection
        self._change.unpark_all()
        if not self._started:
            self._started = True
            task_status.started()


def _topic(topic: Topic | str) -> Topic:
    return Topic.parse(topic) if isinstance(topic, str) else topic


@asynccontextmanager
async def open_client(
    url: str = DEFAULT_URL,
    *,
    token: Token | None = None,
    ssl_context: ssl.SSLContext | None = None,
    backoff: Backoff | None = None,
    buffer_messages: int = 10_000,
    max_message_bytes: int = 16 * 2**20,
    connect_timeout_seconds: float = 10.0,
    pong_timeout_seconds: float = 10.0,
    close_timeout_seconds: float = 2.0,
    on_violation: Callable[[Violation], None] | None = None,
) -> AsyncIterator[Client]:
    """Connect to a server, and stay connected while the block runs.

    `token` is sent with each connection; where it is a function it is called for each, so that a
    server that finds one expired is given another. `on_violation` is told of each breach of the
    contract as it is found. Raises ConnectError, ClosedError and DecodeError where there is no
    server that takes the client, and ValueError for a URL that is
    none; once there was one, the client comes back to it by itself.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise ValueError(f"{redact(url)!r} is no URL with the scheme ws or wss")
    client = Client(
        Dialer(
            url=url,
            token=token,
            ssl_context=ssl_context,
            max_message_bytes=max_message_bytes,
            connect_timeout_seconds=connect_timeout_seconds,
            close_timeout_seconds=close_timeout_seconds,
        ),
        backoff=backoff or Backoff(),
        buffer_messages=buffer_messages,
        pong_timeout_seconds=pong_timeout_seconds,
        on_violation=on_violation,
    )
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            try:
                yield client
            finally:
                client.leave()
    except BaseExceptionGroup as group:
        # What left the block, or kept it from being entered: the nursery is nobody's business.
        # Where there is more than one, a task of ours has failed, too, and both must be seen.
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
    if error is not None:
        raise error
