"""Redis, servers, a producer and clients that verify what they get: the world of a fault.

async with open_world(redis, tmp_path) as world:
    await world.flow()          # every client has had five seconds of every topic
    ...                         # the fault
    await world.flow()          # and five more
    await world.settle()        # the flow ends; every account adds up
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from streamer.client import Backoff, Client, Mode, open_client
from streamer.protocol.messages import GapReason
from tests.faults.ledger import Ledger, TopicAccount
from tests.faults.processes import Producer, ServerProcess
from tests.faults.producer import HISTORY_SECONDS, Order
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import FLOW_DEADLINE_SECONDS, SLOW_POLL_SECONDS, eventually

PATIENCE_SECONDS: Final = 60.0
"""Before server or client gives the other up, where the test is not about that."""

FLOW_SECONDS: Final = 5.0
RATE: Final = 200.0
POSITIONED: Final = tuple(f"stock:positioned{number}" for number in range(14))
PLAIN: Final = tuple(f"stock:plain{number}" for number in range(6))
TOPICS: Final = POSITIONED + PLAIN
CLIENTS: Final = 50
HISTORY_LENGTH: Final = 12_000
"""60 s of the flow: longer than any fault that is to lose nothing. A client that stalls may be 15 s
behind the producer, and that is again 15 s ahead of the others when they have had 5 s more."""


class Witness:
    """A client that verifies its stream, and enters all it gets into a ledger."""

    def __init__(
        self,
        topics: Sequence[str],
        mode: Mode,
        *,
        buffer_messages: int = 10_000,
        pong_timeout_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.topics = topics
        self.mode = mode
        self._buffer_messages = buffer_messages
        self._pong_timeout_seconds = pong_timeout_seconds
        self.ledger = Ledger()
        self._client: Client | None = None
        self._awake = trio.Event()
        self._awake.set()

    @property
    def client(self) -> Client:
        """Once it runs."""
        assert self._client is not None
        return self._client

    async def run(
        self,
        url: str,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Receive until cancelled; started once it is subscribed."""
        async with open_client(
            url,
            backoff=Backoff(first_seconds=0.1, max_seconds=1.0),
            buffer_messages=self._buffer_messages,
            connect_timeout_seconds=PATIENCE_SECONDS,
            pong_timeout_seconds=self._pong_timeout_seconds,
        ) as client:
            self._client = client
            await client.subscribe(self.topics, mode=self.mode)
            task_status.started()
            async for event in client:
                self.ledger.take(event)
                if not self._awake.is_set():
                    await self._awake.wait()

    def stall(self) -> None:
        """Take no message until `resume`."""
        self._awake = trio.Event()

    def resume(self) -> None:
        """Take messages again."""
        self._awake.set()

    @property
    def is_stalled(self) -> bool:
        """Whether it takes no messages."""
        return not self._awake.is_set()

    def has_reached(self, counts: dict[str, int]) -> bool:
        """Whether it has received so much of each of its topics."""
        accounts = self.ledger.topics
        return all(accounts[topic].number >= counts[topic] for topic in self.topics)

    def has_ended(self, counts: dict[str, int]) -> bool:
        """Whether it has received the end of each of its topics, or a gap instead."""
        accounts = self.ledger.topics
        return all(
            accounts[topic].number == counts[topic] or accounts[topic].is_behind_gap
            for topic in self.topics
        )

    def __str__(self) -> str:
        numbers = {topic: account.number for topic, account in self.ledger.topics.items()}
        return f"at {numbers} in mode {self.mode}, {self.client.statistics()}"

    def problems(self) -> list[str]:
        """Violations of the contract that this client has seen."""
        account = self.client.account()
        return [
            *self.ledger.problems,
            *map(str, account.first_violations),
            *([f"{account.outstanding} not recovered"] if account.outstanding else []),
        ]


def witnesses(
    count: int = CLIENTS,
    *,
    topics: Sequence[str] = TOPICS,
    topics_each: int = 1,
    buffer_messages: int = 10_000,
    pong_timeout_seconds: float = PATIENCE_SECONDS,
) -> list[Witness]:
    """Clients that hold all topics between them, each topic in both modes."""
    turns = itertools.cycle(topics)
    modes = itertools.cycle([Mode.LATEST, Mode.ALL, Mode.ALL])
    return [
        Witness(
            [next(turns) for _ in range(topics_each)],
            next(modes),
            buffer_messages=buffer_messages,
            pong_timeout_seconds=pong_timeout_seconds,
        )
        for _ in range(count)
    ]


@attrs.frozen
class Totals:
    """The accounts of all clients together, of some topics."""

    received: int
    merged: int
    lost: int
    gaps: Counter[GapReason]
    accounts: Sequence[TopicAccount]


class World:
    """The server, the producer and the clients of a test; made by `open_world`."""

    def __init__(
        self,
        server: ServerProcess,
        producer: Producer,
        clients: Sequence[Witness],
        rates: Mapping[str, float],
    ) -> None:
        self.server = server
        self.producer = producer
        self.clients = clients
        self._rates = rates
        self._settling = False
        self._finished = trio.Event()

    async def flow(
        self, seconds: float = FLOW_SECONDS, clients: Sequence[Witness] | None = None
    ) -> None:
        """Wait until each client has had all of the next publications of its topics."""
        await eventually(lambda: self.producer.counts)
        counts = self.producer.counts
        goal = {topic: counts[topic] + round(seconds * rate) for topic, rate in self._rates.items()}
        await self._wait(
            self.clients if clients is None else clients, lambda client: client.has_reached(goal)
        )

    async def settle(self) -> None:
        """End the flow, let everybody come to its end, and see that all of it adds up."""
        self._settling = True
        await self._finished.wait()
        counts = self.producer.counts
        await self._wait(self.clients, lambda client: client.has_ended(counts))
        problems = [problem for client in self.clients for problem in client.problems()]
        assert not problems, "\n".join(problems[:20])

    async def pace(self) -> None:
        """Tell the producer how far the clients are, until the flow is to end."""
        while not self._settling:
            await self.producer.report(self._received_seconds())
            await trio.sleep(SLOW_POLL_SECONDS)
        await self.producer.finish()
        self._finished.set()

    def _received_seconds(self) -> float:
        """How much of the flow all clients have had, but for what they know to be lost."""
        return min(
            (
                account.number / self._rates[topic]
                for client in self.clients
                if not client.is_stalled  # it would hold up the flow that the others wait for
                for topic, account in client.ledger.topics.items()
                if not account.is_behind_gap
            ),
            default=0.0,
        )

    async def _wait(self, clients: Sequence[Witness], is_there: Callable[[Witness], bool]) -> None:
        """Wait until each client is there, as long as any of the others comes closer.

        The clients verify some 100,000 messages in this process, which a busy machine may give a
        tenth of a core. So no time for the whole would be long enough for certain.
        """
        progress = deadline_seconds = 0.0
        while waiting := [client for client in clients if not is_there(client)]:
            now_seconds = trio.current_time()
            # Those that are there drop out: it grows only as long as others come closer.
            closer = sum(client.ledger.taken for client in waiting) - 1e12 * len(waiting)
            if closer > progress or not deadline_seconds:
                progress, deadline_seconds = closer, now_seconds + FLOW_DEADLINE_SECONDS
            elif now_seconds > deadline_seconds:
                raise AssertionError(
                    f"{len(waiting)} of {len(clients)} clients have stopped, and the producer is at"
                    f" {self.producer.counts}: {[*map(str, waiting[:3])]};"
                    f" the server says {self.server.log[-2000:]}"
                )
            await trio.sleep(SLOW_POLL_SECONDS)

    def totals(self, topics: Iterable[str]) -> Totals:
        """The totals of some topics over all clients."""
        wanted = set(topics)
        accounts = [
            account
            for client in self.clients
            for topic, account in client.ledger.topics.items()
            if topic in wanted
        ]
        return Totals(
            received=sum(account.received for account in accounts),
            merged=sum(account.merged for account in accounts),
            lost=sum(account.lost for account in accounts),
            gaps=sum((account.gaps for account in accounts), Counter()),
            accounts=accounts,
        )


@asynccontextmanager
async def open_world(
    redis: RedisServer,
    directory: Path,
    *arguments: str,
    clients: Sequence[Witness] | None = None,
    more_topics: Mapping[str, float] | None = None,
    redis_port: int | None = None,
    network: Proxy | None = None,
) -> AsyncIterator[World]:
    """A server of `redis` with more `arguments`, publications that flow, and clients.

    `more_topics` are positioned ones with rates of their own. The server finds Redis at
    `redis_port`, and the clients find the server over `network`, if there is something in between.
    """
    clients = witnesses() if clients is None else clients
    rates = dict.fromkeys(TOPICS, RATE) | dict(more_topics or {})
    plain = {topic: rates[topic] for topic in PLAIN}
    positioned = {topic: rate for topic, rate in rates.items() if topic not in plain}
    order = Order(redis.url, positioned=positioned, plain=plain, history_length=HISTORY_LENGTH)
    server = ServerProcess(directory, *server_arguments(redis_port or redis.port), *arguments)
    url = server.url
    if network is not None:
        network.server_port = server.port
        url = f"ws://127.0.0.1:{network.port}/v1/ws"
    async with server, trio.open_nursery() as nursery:
        with trio.fail_after(FLOW_DEADLINE_SECONDS):
            async with trio.open_nursery() as starting:
                for client in clients:
                    starting.start_soon(nursery.start, client.run, url)
        # The producer is ended last: what fails in here must not look like its end.
        async with Producer.run(order) as producer, trio.open_nursery() as pacing:
            world = World(server, producer, clients, rates)
            pacing.start_soon(world.pace)
            yield world
            pacing.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


def server_arguments(redis_port: int) -> tuple[str, ...]:
    """The command line arguments of every server of these tests."""
    return (
        *("--redis", f"redis://127.0.0.1:{redis_port}/0"),
        *("--history-length", str(HISTORY_LENGTH)),
        *("--history-seconds", str(HISTORY_SECONDS)),
        *("--flush-interval-ms", "100"),
        # On a busy machine, with the load that is on it here, what is neither lost nor silent may
        # take long: Redis to tell the history to clients that come back and to answer a probe,
        # clients to send their handshake and to answer.
        *("--probe-timeout-seconds", str(PATIENCE_SECONDS)),
        *("--handshake-timeout-seconds", str(PATIENCE_SECONDS)),
        *("--subscribe-timeout-seconds", str(PATIENCE_SECONDS)),
        *("--heartbeat-timeout-seconds", str(PATIENCE_SECONDS)),
        # And clients to come back to a topic that all of them have left, which without positions
        # begins anew if it is released meanwhile.
        *("--linger-seconds", str(PATIENCE_SECONDS)),
    )


def check_nothing_lost(world: World, topics: Iterable[str] = POSITIONED) -> None:
    """Every publication of these came, or was merged, and no gap was announced."""
    totals = world.totals(topics)
    assert totals.received > 0
    holes = [account for account in totals.accounts if account.gaps or account.lost]
    assert not holes, f"{len(holes)} of {len(totals.accounts)}, {holes[:3]}\n{world.server.log}"


def check_gap_announced(world: World, topics: Iterable[str]) -> None:
    """Assert that every client got a gap, into a new epoch, in each of these topics it holds."""
    accounts = world.totals(topics).accounts
    assert accounts
    for account in accounts:
        assert account.gaps[GapReason.SOURCE_RECONNECTED] >= 1
        assert account.epochs
