"""The publishers for threads and for asyncio give the guarantees of the one for Trio.

Covers streamer.publisher.core, streamer.publisher.sync, streamer.publisher.asyncio,
streamer.broker.connect_blocking and streamer.broker.connect_asyncio.
"""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from decimal import Decimal
from typing import Any

import orjson
import pytest
import redis as redis_py

from streamer.broker.keys import history_key
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import PriceUpdate
from streamer.publisher import PublishFailedError, PublishRefusedError, Receipt
from streamer.publisher import asyncio as asyncio_style
from streamer.publisher import sync as sync_style
from tests.helpers.publications import numbered_price, numbered_publication, price
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_topology import ClusterService
from tests.helpers.timing import DEADLINE_SECONDS, wait_until
from tests.publisher.styles import STYLES, BlockingPublisher

CHANNEL = "stock:005930:price"

Opening = Callable[..., AbstractContextManager[BlockingPublisher]]


@pytest.fixture(name="opened", params=STYLES)
def opened_in_a_style(request: pytest.FixtureRequest) -> Opening:
    """Opens a publisher in one of the styles."""
    return STYLES[request.param]


def prices(*numbers: int, code: str = "005930") -> list[tuple[str, bytes]]:
    """Numbered publications for `publish_many`."""
    return [numbered_publication(number, code) for number in numbers]


def texts(redis: redis_py.Redis, topic: str = "stock:005930") -> list[bytes]:
    """The texts of the history of a topic, the oldest first."""
    entries: Any = redis.xrange(history_key(topic))
    return [fields[b"m"] for _, fields in entries]


def numbers_of(redis: redis_py.Redis, topic: str = "stock:005930") -> list[int]:
    """The numbers of the publications in the history."""
    return [orjson.loads(text)["volume"] for text in texts(redis, topic)]


def sequences(receipts: list[Receipt]) -> list[int]:
    """The sequences of the receipts' positions."""
    return [receipt.position.sequence for receipt in receipts if receipt.position is not None]


@contextmanager
def in_a_thread(function: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Run a function meanwhile; gives a function that waits for its result."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        yield lambda: future.result(DEADLINE_SECONDS)


def test_positions_count_up_and_the_text_is_the_producers(
    opened: Opening, redis_url: str, redis: redis_py.Redis
) -> None:
    """Each publication is in the history once, with every digit, and its position behind it."""
    with opened(redis_url) as publisher:
        receipts = publisher.publish_many(prices(*range(1, 301)))
        receipts += publisher.publish_many(prices(301))
        statistics = publisher.statistics()
    assert sequences(receipts) == list(range(1, 302))
    assert (statistics.held, statistics.acknowledged, statistics.connections) == (0, 301, 1)
    for number, text in enumerate(texts(redis), 1):
        assert text.startswith(numbered_price(number)[:-1] + b',"epoch":"')


def test_text_dict_and_model_are_alike(
    opened: Opening, redis_url: str, redis: redis_py.Redis
) -> None:
    """A Decimal keeps its digits, which a float would not."""
    fields = {"change": 0, "change_percent": 0, "volume": 1}
    quoted = {"type": "price_update", "stock_code": "A", "price": Decimal("72500.10"), **fields}
    with opened(redis_url) as publisher:
        publisher.publish_many(
            [
                ("stock:A:price", quoted),
                ("stock:A:price", PriceUpdate("A", 72500.1, 0, 0, 1)),
                ("stock:A:price", price("A", 72500.1)),
                ("stock:A:price", price("A", 72500.1).decode()),
            ]
        )
    published = texts(redis, "stock:A")
    assert b'"price":72500.10,' in published[0]
    assert [orjson.loads(text)["price"] for text in published] == [72500.1] * 4


@pytest.mark.parametrize(
    "payload", [b"nonsense", "{}", {"type": object()}, {"price": Decimal("NaN")}, {1: 2}, "\ud800"]
)
def test_a_call_with_an_invalid_publication_sends_nothing(
    opened: Opening, redis_url: str, redis: redis_py.Redis, payload: Any
) -> None:
    """It is refused before anything is published."""
    with opened(redis_url) as publisher:
        with pytest.raises(InvalidPublicationError):
            publisher.publish_many([*prices(1, 2), (CHANNEL, payload)])
        assert publisher.publish_many([]) == []
    assert not redis.keys()


def test_connections_that_are_killed_lose_and_double_nothing(
    opened: Opening, redis_url: str, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    """All publications are in the history once, in order."""
    done = threading.Event()

    def kill() -> None:
        with redis_server.connect() as operator:
            while not done.is_set():
                operator.client_kill_filter(_type="normal", skipme=True)
                done.wait(0.02)

    receipts: list[Receipt] = []
    with opened(redis_url, history_length=10_000) as publisher:
        publisher.publish_many(prices(1))
        with in_a_thread(kill) as killed:
            try:
                for first in range(2, 3002, 100):
                    receipts += publisher.publish_many(prices(*range(first, first + 100)))
            finally:
                done.set()
            killed()
        assert publisher.statistics().connections > 1
    assert numbers_of(redis) == list(range(1, 3002))
    assert sequences(receipts) == list(range(2, 3002))


def test_a_killed_redis_loses_and_doubles_nothing(
    opened: Opening, own_redis_server: Callable[..., RedisServer]
) -> None:
    """Publications wait while it is away."""
    server = own_redis_server(appendonly="yes", appendfsync="always")
    with opened(server.url, history_length=10_000) as publisher:
        for first in (1, 101, 201):
            server.kill()
            with in_a_thread(server.start) as started:
                receipts = publisher.publish_many(prices(*range(first, first + 100)))
                started()
            assert sequences(receipts) == list(range(first, first + 100))
    with server.connect() as redis:
        assert numbers_of(redis) == list(range(1, 301))


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_a_hold_time_in_which_nothing_could_be_published_is_refused(
    opened: Opening, redis_url: str, seconds: float
) -> None:
    """It is an error when the publisher is opened, rather than at each publication."""
    with pytest.raises(ValueError, match="hold_seconds"), opened(redis_url, hold_seconds=seconds):
        pass


def test_a_redis_that_stays_away_is_a_failure_that_passes(
    opened: Opening, own_redis_server: Callable[..., RedisServer]
) -> None:
    """After the hold time the call fails and names what was not acknowledged."""
    server = own_redis_server(appendonly="yes", appendfsync="always")
    with opened(server.url, hold_seconds=0.3, timeout_seconds=30) as publisher:
        publisher.publish_many(prices(1))
        server.kill()
        with pytest.raises(PublishFailedError, match=r"nothing acknowledged for 0\.3 s") as failed:
            publisher.publish_many(prices(2, 3))
        assert failed.value.unacknowledged == (0, 1)
        assert publisher.statistics().held == 0
        server.start()
    with opened(server.url) as publisher:
        publisher.publish_many(prices(4))
    with server.connect() as redis:
        assert numbers_of(redis) == [1, 4]


def test_a_silent_redis_is_given_up_for_another_connection(
    opened: Opening, own_redis_server: Callable[..., RedisServer]
) -> None:
    """A publication that is sent again after a lost answer is not published twice."""
    server = own_redis_server()
    with opened(server.url, timeout_seconds=0.3) as publisher:
        publisher.publish_many(prices(1))
        server.pause()

        def resume() -> None:
            wait_until(lambda: publisher.statistics().last_error is not None)
            server.resume()

        with in_a_thread(resume) as resumed:
            receipts = publisher.publish_many(prices(2, 3))
            resumed()
        assert sequences(receipts) == [2, 3]
    with server.connect() as redis:
        assert numbers_of(redis) == [1, 2, 3]


def test_a_connection_of_a_call_that_was_late_waits_as_long_for_answers_as_any(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Not for the time alone that was left to the call which made it."""
    server = own_redis_server()
    with (
        sync_style.open_publisher(server.url, hold_seconds=0.5, timeout_seconds=0.5) as publisher,
        server.connect() as redis,
    ):
        publisher.publish_many(prices(1))
        redis.config_set("maxmemory", 1)

        def give_memory() -> None:
            wait_until(lambda: "OOM" in (publisher.statistics().last_error or ""))
            redis.config_set("maxmemory", 0)

        with in_a_thread(give_memory) as given:
            while publisher.statistics().acknowledged < 2:
                with suppress(PublishFailedError):  # on a machine that is slow
                    publisher.publish_many(prices(2))
            given()
        server.pause()
        with pytest.raises(PublishFailedError, match=r": no answer within 0\.5 s$"):
            publisher.publish_many(prices(3))
        server.resume()


def test_publications_that_redis_refuses_fail_and_the_rest_is_published(
    opened: Opening, own_redis_server: Callable[..., RedisServer]
) -> None:
    """A user without permission for one stock publishes the others."""
    server = own_redis_server(
        user="writer on nopass ~* resetchannels &stock:005930:* +@all -@dangerous +client|setname"
    )
    url = f"redis://writer:any@127.0.0.1:{server.port}"
    with opened(url) as publisher:
        mixed = [*prices(1), *prices(1, code="A"), *prices(2)]
        with pytest.raises(PublishRefusedError, match="stock:A:price") as refused:
            publisher.publish_many(mixed)
        assert refused.value.unacknowledged == (1,)
    with server.connect() as redis:
        assert numbers_of(redis) == [1, 2]


def test_without_positions_it_is_any_programs_publish(
    opened: Opening, redis_url: str, redis: redis_py.Redis
) -> None:
    """Subscribers get the producer's text, and Redis keeps nothing of it."""
    with redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe(CHANNEL)
        messages = subscription.listen()
        next(messages)
        with opened(redis_url, positioned=False) as publisher:
            assert publisher.publish_many(prices(1)) == [Receipt(None, 1)]
        assert next(messages)["data"] == numbered_price(1)
    assert not redis.keys()


def test_a_connection_that_was_closed_while_nobody_used_it_costs_no_publication(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Without positions, what is written to it would count as lost: it is noticed before."""
    with sync_style.open_publisher(redis_url, positioned=False) as publisher:
        for number in range(3):
            assert publisher.publish_many(prices(number)) == [Receipt(None, 0)]
            redis.client_kill_filter(_type="normal", skipme=True)
        assert publisher.statistics().connections == 3


def test_a_cluster_gets_each_topic_on_its_master(opened: Opening) -> None:
    """Topics of all masters, in one call."""
    codes = [f"S{number}" for number in range(12)]
    with ClusterService(calm=True) as cluster, opened(cluster.url) as publisher:
        publications = [item for code in codes for item in prices(1, 2, code=code)]
        assert sequences(publisher.publish_many(publications)) == [1, 2] * len(codes)
        masters = set()
        for master in cluster.masters:
            with master.connect() as redis:
                masters |= {master.port for _ in redis.scan_iter("*history*")}
        assert len(masters) == 3


def test_threads_share_a_publisher(redis_url: str, redis: redis_py.Redis) -> None:
    """Each thread's publications stay in its order, and no position is given twice."""
    with sync_style.open_publisher(redis_url, history_length=10_000) as publisher:

        def publish(thread: int) -> list[int]:
            return [
                sequence
                for number in range(100)
                for sequence in sequences([publisher.publish(*prices(thread * 1000 + number)[0])])
            ]

        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(publish, range(8)))
    assert sorted(sequence for of_thread in taken for sequence in of_thread) == [*range(1, 801)]
    for of_thread in taken:
        assert of_thread == sorted(of_thread)
    published = numbers_of(redis)
    for thread in range(8):
        mine = [number for number in published if number // 1000 == thread]
        assert mine == sorted(mine)


def test_too_many_threads_that_wait_are_refused(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Where Redis is away and as many are held as the option allows, the next fails at once."""
    server = own_redis_server()
    with sync_style.open_publisher(server.url, hold_messages=2) as publisher:
        publisher.publish_many(prices(1))
        server.kill()
        with in_a_thread(lambda: publisher.publish_many(prices(2, 3))) as published:
            wait_until(lambda: publisher.statistics().last_error is not None)
            with pytest.raises(PublishFailedError, match="2 publications are held already"):
                publisher.publish_many(prices(4))
            server.start()
            assert len(published()) == 2


FORK = """
import os, sys
from streamer.publisher.sync import open_publisher
from tests.helpers.publications import numbered_publication
with open_publisher(sys.argv[1]) as publisher:
    publisher.publish(*numbered_publication(1))
    child = os.fork()
    if not child:
        publisher.publish(*numbered_publication(2))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    publisher.publish(*numbered_publication(3))
"""


def test_a_forked_process_has_a_connection_of_its_own(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """As with Celery and gunicorn: the processes do not read each other's answers."""
    subprocess.run([sys.executable, "-c", FORK, redis_url], check=True, timeout=DEADLINE_SECONDS)
    assert numbers_of(redis) == [1, 2, 3]


FORKED_THREADS = """
import os, sys, threading
from streamer.publisher.sync import open_publisher
from tests.helpers.publications import numbered_publication
THREADS, FORKS = 4, 10
sys.setswitchinterval(1e-6)
with open_publisher(sys.argv[1]) as publisher:
    publisher.publish(*numbered_publication(0))
    for _ in range(FORKS):
        child = os.fork()
        if not child:
            barrier = threading.Barrier(THREADS)
            def publish(number):
                barrier.wait()
                publisher.publish(*numbered_publication(number))
            threads = [threading.Thread(target=publish, args=[n]) for n in range(1, THREADS + 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            statistics = publisher.statistics()
            os._exit((statistics.acknowledged, statistics.connections) != (THREADS, 1))
        assert os.waitpid(child, 0)[1] == 0
"""


def test_threads_of_a_forked_process_that_publish_first_share_its_connection(
    redis_url: str,
) -> None:
    """As in gunicorn's workers with threads: they all find the connection of the parent."""
    subprocess.run(
        [sys.executable, "-c", FORKED_THREADS, redis_url], check=True, timeout=DEADLINE_SECONDS
    )


def test_a_closed_publisher_publishes_nothing(redis_url: str, redis: redis_py.Redis) -> None:
    """It does not open a connection that nobody would close."""
    with sync_style.open_publisher(redis_url) as publisher:
        publisher.publish_many(prices(1))
    with pytest.raises(ValueError, match="closed"):
        publisher.publish_many(prices(2))
    assert numbers_of(redis) == [1]


def test_tasks_share_a_publisher_and_a_cancelled_call_costs_the_others_nothing(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Its publications are not sent once its caller has stopped waiting."""
    server = own_redis_server(appendonly="yes", appendfsync="always")

    async def main() -> None:
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            asyncio_style.open_publisher(server.url) as publisher,
        ):
            await publisher.publish(*prices(1)[0])
            await asyncio.to_thread(server.kill)
            cancelled = asyncio.create_task(publisher.publish(*prices(2)[0]))
            others = [asyncio.create_task(publisher.publish(*prices(n)[0])) for n in (3, 4, 5)]
            while publisher.statistics().held < 4:  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            assert cancelled.cancelled()
            await asyncio.to_thread(server.start)
            assert sequences(await asyncio.gather(*others)) == [2, 3, 4]

    asyncio.run(main())
    with server.connect() as redis:
        assert numbers_of(redis) == [1, 3, 4, 5]


@pytest.mark.parametrize("turns", range(8))
def test_on_asyncio_a_publisher_closes_while_its_connection_is_lost(
    redis_url: str, redis: redis_py.Redis, turns: int
) -> None:
    """It ends in each of the turns of the event loop that the loss takes."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            async with asyncio_style.open_publisher(redis_url) as publisher:
                await publisher.publish(*prices(1)[0])
                # Blocks the event loop: the loss is there when its next turn begins.
                redis.client_kill_filter(_type="normal", skipme=True)
                for _ in range(turns):
                    await asyncio.sleep(0)

    asyncio.run(main())


def test_on_asyncio_closing_can_be_cancelled(redis_url: str) -> None:
    """A caller that is cancelled while it closes the publisher does not go on."""

    async def main() -> None:
        closing, went_on = asyncio.Event(), []

        async def use() -> None:
            async with asyncio_style.open_publisher(redis_url) as publisher:
                await publisher.publish(*prices(1)[0])
                closing.set()
            went_on.append(True)

        user = asyncio.create_task(use())
        await closing.wait()
        user.cancel()
        await asyncio.wait([user])
        assert user.cancelled()
        assert not went_on

    asyncio.run(main())


def test_on_asyncio_a_call_waits_for_room(redis_url: str, redis: redis_py.Redis) -> None:
    """Calls beyond what may be held wait until others are answered."""

    async def main() -> None:
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            asyncio_style.open_publisher(redis_url, hold_messages=1) as publisher,
        ):
            await asyncio.gather(*(publisher.publish(*prices(n)[0]) for n in range(50)))

    asyncio.run(main())
    assert sorted(numbers_of(redis)) == list(range(50))


def test_on_asyncio_a_publisher_that_has_ended_says_so(redis_url: str) -> None:
    """Its callers would wait for ever."""

    async def main() -> None:
        async with asyncio_style.open_publisher(redis_url) as publisher:
            await publisher.publish(*prices(1)[0])
        with pytest.raises(RuntimeError, match="the publisher has ended"):
            await publisher.publish(*prices(2)[0])

    asyncio.run(main())
