"""The client: subscriptions that outlive connections, and one stream of messages."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self

import attrs
import trio

from streamer.backoff import Backoff
from streamer.client.account import Account, Violation
from streamer.client.connection import AnswerT, Connection
from streamer.client.decode import Message
from streamer.client.dial import Dialer
from streamer.client.endings import ABNORMAL, Ending, ReturnPolicy
from streamer.client.errors import (
    ClientError,
    ConnectError,
    ConnectionLostError,
    DecodeError,
    Rejected,
    SubscriptionRejectedError,
    rejections,
)
from streamer.client.messages import Data, Error, Gap
from streamer.client.requests import Limits, Options, subscribe_requests, unsubscribe_requests
from streamer.client.restore import restore, restore_options
from streamer.client.tokens import Token, TokenSource
from streamer.client.verify import Verifier
from streamer.client.websocket import WebSocket, WebSocketClosedError
from streamer.protocol import messages
from streamer.protocol.endpoint import WEBSOCKET_PATH
from streamer.protocol.errors import ErrorCode
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic
from streamer.urls import is_websocket_url, redact

DEFAULT_URL: Final = f"ws://127.0.0.1:8765{WEBSOCKET_PATH}"
_DEFAULT_HEARTBEAT_SECONDS: Final = 25.0
"""The contract's default, for a server that announces an interval of 0 or less."""

Event = Data | Gap | Error
"""The messages that a client iterates over: data, gaps, and errors that answer no request."""


@attrs.frozen
class ClientStatistics:
    """The state of a client."""

    connected: bool
    session_id: str
    connections: int
    """Connections made so far."""
    subscriptions: int
    buffered_messages: int
    last_problem: str | None
    """Why the last connection ended, or the last attempt failed."""


class Client:
    """A client that reconnects and restores its subscriptions; made by `open_client`.

    Iterate over it for the messages, batches unpacked, in order. While the server cannot be
    reached, the iteration waits; if reconnecting is futile, it ends with a ClientError. When
    `buffer_messages` wait for the consumer, no more are read: the server then merges messages for
    this client, or, in mode all, finally closes the connection.
    """

    def __init__(
        self,
        dialer: Dialer,
        *,
        backoff: Backoff,
        buffer_messages: int,
        max_bandwidth: float | None,
        pong_timeout_seconds: float,
        on_violation: Callable[[Violation], None] | None,
    ) -> None:
        self._dialer = dialer
        self._return_policy = ReturnPolicy(backoff, renews_token=dialer.tokens.renews)
        self._buffer_messages = buffer_messages
        self._pong_timeout_seconds = pong_timeout_seconds
        self._verifier = Verifier(on_violation)
        self._wanted: dict[Topic, Options] = {}
        self._max_bandwidth = max_bandwidth
        self._inbox: deque[Event] = deque()
        self._arrival = trio.lowlevel.ParkingLot()
        self.room = trio.lowlevel.ParkingLot()
        self._change = trio.lowlevel.ParkingLot()
        """Unparked when `_connection` or `_failure` is set."""
        self._connection: Connection | None = None
        """The open connection, once its subscriptions are restored."""
        self._expiring = trio.Event()
        """Set when the server announces the end of the token."""
        self._renewals = trio.CancelScope()
        self._personal: list[Topic] = []
        """The topics that the server holds for the client's user without being asked."""
        self._conversing: Connection | None = None
        """The open connection, whether or not its subscriptions are restored."""
        self._resyncing: set[Topic] = set()
        """Topics for which whole messages were asked for and have not come yet."""
        self._failure: ClientError | None = None
        self._conversation: trio.CancelScope | None = None
        self._tasks = trio.CancelScope()
        self._started = False
        self._leaving = False
        self._session_id = ""
        self._limits: Limits = {}
        self._connections = 0
        self._last_problem: str | None = None

    # For the consumer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await self.receive()

    async def receive(self) -> Event:
        """Return the next message. Raises ClientError if there will be none any more.

        Not a checkpoint if one has already arrived: that would cost more than everything else.
        """
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                await self._arrival.park()

    def receive_nowait(self) -> Event:
        """Return the next message that has arrived. Raises trio.WouldBlock if there is none."""
        if self._inbox:
            event = self._inbox.popleft()
            self.room.unpark_all()
            return event
        if self._failure is not None:
            raise self._failure
        raise trio.WouldBlock

    def account(self) -> Account:
        """Return the account of all messages so far, those in the buffer included."""
        return self._verifier.account()

    def position(self, topic: Topic | str) -> Position | None:
        """Return the position of the last message of a topic."""
        return self._verifier.position(_topic(topic))

    def statistics(self) -> ClientStatistics:
        """Return the state of the client now."""
        return ClientStatistics(
            connected=self._connection is not None,
            session_id=self._session_id,
            connections=self._connections,
            subscriptions=len(self._wanted),
            buffered_messages=len(self._inbox),
            last_problem=self._last_problem,
        )

    async def subscribe(
        self,
        topics: Iterable[Topic | str],
        *,
        kinds: Iterable[Kind | str] | None = None,
        mode: Mode | str = Mode.LATEST,
        max_rate: float | None = None,
        snapshot: bool = True,
        delta: bool = False,
        depth: int | None = None,
    ) -> None:
        """Subscribe to topics such as `stock:005930`, also on later connections.

        `kinds` limits the kinds that the topics carry. `max_rate` is the most messages per second
        of each topic and kind. With `delta`, prices and order books come as changes; the client
        applies them, checks their checksums, and delivers whole messages. `depth` is the number of
        levels of each side of an order book. Waits for the answer, through lost connections if
        necessary; meanwhile more than `buffer_messages` may be buffered.
        Raises ValueError for a request that no server would accept, SubscriptionRejectedError if
        some of the topics are rejected, RequestError, DecodeError, and the error that ends the
        client.
        """
        options = Options(
            kinds=None if kinds is None else frozenset(map(Kind, kinds)),
            mode=Mode(mode),
            max_rate=max_rate,
            snapshot=snapshot,
            delta=delta,
            depth=depth,
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
        """Unsubscribe from topics. Raises the errors of `subscribe`."""
        unwanted = [_topic(topic) for topic in topics]
        for topic in unwanted:
            self._wanted.pop(topic, None)
        for request in unsubscribe_requests(unwanted, self._limits):
            await self._ask(request, messages.Unsubscribed)

    async def limit_bandwidth(self, bytes_per_second: float) -> None:
        """Limit what the server sends to so many bytes per second, also later; 0: no limit.

        Beyond it, messages are merged in mode latest, and a client in mode all is disconnected.
        Waits for the answer, as `subscribe` does. Raises ValueError for a number that no server
        would accept, RequestError, DecodeError, and the error that ends the client.
        """
        request = messages.SetOptions(bytes_per_second)
        self._max_bandwidth = bytes_per_second
        await self._ask(request, messages.ConnectionOptions)

    async def _ask(self, request: messages.ClientMessage, answer_type: type[AnswerT]) -> AnswerT:
        while True:
            connection = await self._wait_connected()
            try:
                return await connection.ask(request, answer_type)
            except ConnectionLostError:
                continue

    async def _wait_connected(self) -> Connection:
        # A connection that has ended is kept until its socket is closed.
        while self._connection is None or self._connection.has_ended:
            if self._failure is not None:
                raise self._failure
            await self._change.park()
        return self._connection

    # For the connection (`connection.Owner`)

    @property
    def has_room(self) -> bool:
        """Whether the buffer has room for another message."""
        return len(self._inbox) < self._buffer_messages

    def on_request(self, request: messages.ClientMessage) -> None:
        """Pass a request to the verifier."""
        self._verifier.sent(request)

    def on_message(self, message: Message, *, is_answer: bool) -> None:
        """Verify a message, and buffer it if it is for the consumer."""
        if isinstance(message, Data | Gap) and self._verifier.is_early(message):
            return  # it is repeated when the topic is restored
        topic = self._verifier.receive(message)
        match message:
            case Data():
                whole = self._verifier.whole
                if whole is not None or topic is None:
                    message = message if whole is None else whole
                    message.assign_topic(topic)
                    self._deliver(message)
                else:
                    self._resync(topic)
            case messages.Resynced():
                for target in message.targets:
                    self._resyncing.discard(Topic(message.subscription_type, target))
            case Gap():
                self._deliver(message)
            case Error(request_id=None) if not is_answer:
                self._deliver(message)
            case _:
                self._on_announcement(message)

    def _on_announcement(self, message: Message) -> None:
        """Take note of what the server announces about the connection."""
        match message:
            case messages.TokenExpiring():
                self._expiring.set()
            case messages.Unsubscribed(reason=reason) if reason is not None:
                self._give_up(message)
            case messages.ServerShutdown() | messages.Disconnected():
                self._return_policy.announce(message)
            case _:
                pass

    def _give_up(self, message: messages.Unsubscribed) -> None:
        """Note that the server has ended subscriptions, and report it to the consumer."""
        topics = [Topic(message.subscription_type, target) for target in message.targets]
        for topic in topics:
            self._wanted.pop(topic, None)
        names = ", ".join(map(str, topics))
        self._deliver(Error(ErrorCode.FORBIDDEN, f"the new token does not permit {names}"))

    def _resync(self, topic: Topic) -> None:
        """Ask for whole messages of a topic, whose deltas cannot be applied."""
        if topic not in self._resyncing and self._conversing is not None:
            self._resyncing.add(topic)
            self._conversing.send_nowait(messages.Resync(topic.subscription_type, [topic.target]))

    def _deliver(self, event: Event) -> None:
        self._inbox.append(event)
        self._arrival.unpark()

    # Connecting

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until `leave`.

        Raises ClientError before it has started; afterwards `receive` raises it.
        """
        with self._tasks:
            try:
                while True:
                    began_at = trio.current_time()
                    ending = await self._dialer.call(partial(self._converse, task_status))
                    if self._leaving:
                        return
                    self._last_problem = str(ending)
                    delay_seconds = self._return_policy.delay_seconds(
                        ending, lasted_seconds=trio.current_time() - began_at
                    )
                    if not self._started:
                        raise ConnectError(f"cannot connect to {self._dialer.url}: {ending.reason}")
                    await trio.sleep(delay_seconds)
            except ClientError as error:
                if not self._started:
                    raise
                self._last_problem = str(error)
                self._fail(error)

    def _fail(self, error: ClientError) -> None:
        """Raise the error in all callers that wait, now or later."""
        self._failure = error
        self._arrival.unpark_all()
        self._change.unpark_all()

    def leave(self) -> None:
        """Close the connection, or end the attempt to make one."""
        self._leaving = True
        if self._failure is None:
            self._fail(ClientError("the client has been closed"))
        self._renewals.cancel()
        if self._conversation is None:
            self._tasks.cancel()
        else:
            self._conversation.cancel()

    async def renew_tokens(self) -> None:
        """Present a new token whenever the server announces the end of the last, until `leave`."""
        with self._renewals:
            while self._dialer.tokens.renews:
                await self._expiring.wait()
                self._expiring = trio.Event()
                try:
                    token = await self._dialer.tokens.get()
                except Exception as error:  # noqa: BLE001 - of the function of the application
                    self._last_problem = f"no new token: {error!r}"
                    continue
                connection = self._conversing
                if token is not None and connection is not None:
                    await self._present(connection, token)

    async def _present(self, connection: Connection, token: str) -> None:
        try:
            await connection.ask(messages.Authenticate(token), messages.Authenticated)
        except ClientError as error:
            self._last_problem = str(error)  # the server closes with 4001, and another is asked for

    async def _converse(
        self,
        task_status: trio.TaskStatus[None],
        socket: WebSocket,
    ) -> Ending:
        """Use a connection until it ends."""
        ending = Ending(ABNORMAL, "left")
        # Cancelling only this scope, not all tasks, leaves time for the closing handshake.
        with trio.CancelScope() as self._conversation:
            connection = self._conversing = Connection(socket, self)
            self._resyncing.clear()
            greeting = await self._receive_greeting(connection)
            if isinstance(greeting, Ending):
                ending = greeting
            else:
                former_session_id, self._session_id = self._session_id, greeting.session_id
                self._limits = greeting.limits
                self._connections += 1
                self._verifier.disconnected()
                self._personal = self._verifier.greeted(greeting)
                interval_seconds = greeting.heartbeat_interval
                ending = await connection.run(
                    partial(self._restore, connection, former_session_id, task_status),
                    heartbeat_interval_seconds=(
                        interval_seconds if interval_seconds > 0 else _DEFAULT_HEARTBEAT_SECONDS
                    ),
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
        except WebSocketClosedError as closed:
            return Ending.of(closed)
        except DecodeError as error:
            # If there was a server before, it may be back at the next attempt.
            return Ending(ABNORMAL, str(error), None if self._started else error)

    async def _restore(
        self,
        connection: Connection,
        former_session_id: str,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Restore the subscriptions, each from its position; then admit requests."""
        own = {topic: Options(snapshot=False) for topic in self._personal}
        try:
            await restore_options(connection, self._max_bandwidth)
            if wanted := self._wanted | own:
                session_id = await restore(
                    connection,
                    former_session_id,
                    wanted,
                    limits=self._limits,
                    position=self._verifier.position,
                )
                self._session_id = session_id or self._session_id
        except ConnectionLostError:
            return
        except DecodeError as error:
            connection.end(Ending(ABNORMAL, str(error)))
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
    compress: bool = False,
    buffer_messages: int = 10_000,
    max_bandwidth: float | None = None,
    max_message_bytes: int = 16 * 2**20,
    connect_timeout_seconds: float = 10.0,
    pong_timeout_seconds: float = 10.0,
    close_timeout_seconds: float = 2.0,
    on_violation: Callable[[Violation], None] | None = None,
) -> AsyncIterator[Client]:
    """Connect to a server, and stay connected while the block runs.

    `token`, or the token that this function (async or not) returns, is sent with each connection.
    With a function, the client also presents a new token when the server announces the end of the
    last, and reconnects after it has expired. A function that raises an error, or returns what is
    no token, such as an empty text, is called again after the backoff, as if the server could not
    be reached. A client with a token receives the messages to its user without subscribing. With
    `compress`, messages are compressed (permessage-deflate) where the server agrees.
    `max_bandwidth` is the most bytes per second that the server sends (`Client.limit_bandwidth`).
    `on_violation` is called for each message that violates the contract. Raises ValueError for an
    invalid URL, token or bandwidth, and ConnectError, ClosedError and DecodeError if the first
    connection fails; after that, the client reconnects.
    """
    messages.SetOptions(max_bandwidth)  # checks it
    if not is_websocket_url(url):
        raise ValueError(f"{redact(url)!r} is no URL with the scheme ws or wss")
    client = Client(
        Dialer(
            url=url,
            tokens=TokenSource(token),
            ssl_context=ssl_context,
            compress=compress,
            max_message_bytes=max_message_bytes,
            connect_timeout_seconds=connect_timeout_seconds,
            close_timeout_seconds=close_timeout_seconds,
        ),
        backoff=backoff or Backoff(),
        buffer_messages=buffer_messages,
        max_bandwidth=max_bandwidth,
        pong_timeout_seconds=pong_timeout_seconds,
        on_violation=on_violation,
    )
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            nursery.start_soon(client.renew_tokens)
            try:
                yield client
            finally:
                client.leave()
    except BaseExceptionGroup as group:
        # The exception that left the block, or prevented it, is raised without the group, which is
        # an implementation detail. If there are more, a background task has failed, too.
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
    if error is not None:
        raise error
