"""Clients that verify their streams while everything around them fails, and change their minds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from operator import eq
from typing import Any, Final

import trio
import trio_websocket

from streamer.client import (
    Backoff,
    Client,
    ClientError,
    Data,
    Error,
    Event,
    Gap,
    Kind,
    Mode,
    OrderbookUpdate,
    Position,
    PriceUpdate,
    Verifier,
    decode_server,
    open_client,
)
from streamer.protocol import messages
from streamer.protocol.codec import encode_request
from streamer.protocol.topics import SubscriptionType, Topic
from tests.faults.ledger import Ledger
from tests.helpers.timing import SLOW_POLL_SECONDS

_SETTLING_SECONDS: Final = 30.0
CLOSED: Final = (trio_websocket.ConnectionClosed, trio_websocket.HandshakeError)


def number_of(event: Data) -> int:
    """The number that the producer has given a publication."""
    if isinstance(event, OrderbookUpdate):
        return int(event.bids[0].quantity)
    assert isinstance(event, PriceUpdate), event
    return int(event.volume)


class Member:
    """A client that holds its topics for the whole run, and others now and then.

    Its ledger has the topics that it holds all the time; the others are for the Verifier alone.
    """

    def __init__(
        self,
        name: str,
        topics: Sequence[str],
        passing: Sequence[str],
        mode: Mode = Mode.LATEST,
    ) -> None:
        self.name = name
        self.topics = topics
        self.mode = mode
        self.ledger = Ledger(number_of, may_lose_data=True)
        self.failures: list[str] = []
        self._passing = passing
        self._client: Client | None = None
        self._stalled: trio.Event | None = None

    @property
    def client(self) -> Client:
        """Once it runs."""
        assert self._client is not None
        return self._client

    async def run(
        self, url: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Receive until cancelled; started once it is subscribed."""
        try:
            async with open_client(
                url,
                backoff=Backoff(first_seconds=0.1, max_seconds=1.0),
                buffer_messages=200,
                connect_timeout_seconds=5.0,
            ) as self._client:
                await self._client.subscribe(self.topics, mode=self.mode)
                task_status.started()
                async for event in self._client:
                    self._take(event)
                    if self._stalled is not None:
                        await self._stalled.wait()
        except ClientError as error:
            self.failures.append(f"the client has ended: {error}")

    def _take(self, event: Event) -> None:
        if isinstance(event, Error):
            self.failures.append(f"{event}")
        elif isinstance(event, Gap):
            if f"{event.subscription_type}:{event.target}" in self.topics:
                self.ledger.take(event)
        elif str(event.topic) in self.topics:
            self.ledger.take(event)

    async def stall(self, seconds: float) -> None:
        """Take no message for a while."""
        if self._stalled is not None:
            return
        self._stalled = trio.Event()
        await trio.sleep(seconds)
        self._stalled.set()
        self._stalled = None

    def wake(self) -> None:
        """End a stall that was cancelled."""
        if self._stalled is not None:
            self._stalled.set()
            self._stalled = None

    async def change_kinds(self, seconds: float) -> None:
        """Leave order books out for a while."""
        accounts = [self.ledger.topics[topic] for topic in self.topics]
        for account in accounts:
            # Without books a recovery may end with some that are left out.
            account.may_skip = True
        await self._request(self.topics, kinds=[Kind.PRICE])
        await trio.sleep(seconds)
        await self._request(self.topics)
        with trio.move_on_after(_SETTLING_SECONDS):
            # What came before the answer waits to be taken. The next message of each topic may be
            # behind some that were left out, and only those that follow it may not.
            while self.client.statistics().buffered_messages:  # noqa: ASYNC110
                await trio.sleep(SLOW_POLL_SECONDS)
            seen = [account.taken for account in accounts]
            while any(map(eq, seen, [account.taken for account in accounts])):  # noqa: ASYNC110
                await trio.sleep(SLOW_POLL_SECONDS)
            for account in accounts:
                account.may_skip = False

    async def widen(self) -> None:
        """Ask for all kinds again, where a change of kinds was cancelled."""
        await self._request(self.topics)

    async def change_topics(self, seconds: float) -> None:
        """Hold other topics for a while."""
        await self._request(self._passing)
        await trio.sleep(seconds)
        try:
            await self.client.unsubscribe(self._passing)
        except ClientError as error:
            self.failures.append(f"unsubscribe: {error}")

    async def _request(self, topics: Sequence[str], **options: Any) -> None:
        try:
            await self.client.subscribe(topics, mode=self.mode, **options)
        except ClientError as error:
            self.failures.append(f"subscribe: {error}")

    def is_up_to_date(self, numbers: dict[str, int], *, plain: Collection[str]) -> bool:
        """Whether it has the last publication of each of its topics.

        Of a topic in `plain` a gap may stand for it: without positions, what was published while
        a server had no connection cannot be had later.
        """
        accounts = self.ledger.topics
        return all(
            accounts[topic].number == numbers[topic]
            or (topic in plain and accounts[topic].is_behind_gap)
            for topic in self.topics
        )

    def problems(self) -> list[str]:
        """Return a line for each thing that does not add up."""
        account = self.client.account()
        found = [*self.failures, *self.ledger.problems, *map(str, account.first_violations)]
        if account.outstanding:
            found.append(f"{account.outstanding} topics not recovered")
        return [f"{self.name}: {problem}" for problem in found]


class Returner:
    """A client that leaves again and again, and restores its session by the URL or by positions."""

    def __init__(self, name: str, topics: Sequence[str]) -> None:
        self.name = name
        self._targets = [topic.partition(":")[2] for topic in topics]
        self._verifier = Verifier(self._violated)
        self._session_id: str | None = None
        self._violations: list[str] = []
        self.restored = 0
        """Connections that took up the session of the one before."""

    def _violated(self, violation: object) -> None:
        self._violations.append(f"{self.name}: {violation}")

    async def run(self, url: str, seconds: float) -> None:
        """Connect again and again, each time for some `seconds`, until cancelled."""
        by_url = False
        while True:
            with trio.move_on_after(seconds), suppress(OSError, *CLOSED):
                query = f"?session_id={self._session_id}" if by_url and self._session_id else ""
                async with trio_websocket.open_websocket_url(
                    url + query, max_message_size=1 << 24
                ) as connection:
                    await self._converse(connection, restored_by_url=bool(query))
            self._verifier.disconnected()
            by_url = not by_url
            await trio.sleep(seconds / 10)

    async def _converse(
        self, connection: trio_websocket.WebSocketConnection, *, restored_by_url: bool
    ) -> None:
        former = self._session_id
        while True:
            for message in decode_server(str(await connection.get_message())):
                self._verifier.receive(message)
                if isinstance(message, messages.Connected):
                    self._session_id = message.session_id
                    if not restored_by_url:
                        await self._ask(connection, self._beginning(former))
                elif isinstance(message, messages.Reconnected):
                    self.restored += 1
                elif isinstance(message, messages.Error):
                    await self._ask(connection, self._subscribe())

    def _beginning(self, former: str | None) -> messages.ClientMessage:
        if former is None:
            return self._subscribe()
        positions: dict[str, Position] = {}
        for target in self._targets:
            topic = f"stock:{target}"
            position = self._verifier.position(Topic.parse(topic))
            if position is not None:
                positions[topic] = position
        return messages.Reconnect(session_id=former, positions=positions, request_id="1")

    def _subscribe(self) -> messages.ClientMessage:
        return messages.Subscribe(
            subscription_type=SubscriptionType.STOCK, targets=self._targets, request_id="2"
        )

    async def _ask(
        self, connection: trio_websocket.WebSocketConnection, request: messages.ClientMessage
    ) -> None:
        self._verifier.sent(request)
        await connection.send_message(encode_request(request))

    def problems(self) -> list[str]:
        """Return a line for each thing that does not add up."""
        return self._violations
