"""The publisher against real Redis servers that are killed, emptied, paused and cut off.

Covers streamer.publisher.commands, streamer.publisher.destination and
streamer.publisher.receipts.
"""

import contextlib
import gc
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import orjson
import pytest
import redis as redis_py
import trio
import trio.testing

from streamer.broker.keys import history_key, position_key, published_key
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.messages import (
    MarketPhase,
    MarketStatus,
    Notification,
    Position,
    PriceUpdate,
    Priority,
)
from streamer.publisher import (
    Publisher,
    PublishFailedError,
    PublishRefusedError,
    Receipt,
    open_publisher,
)
from streamer.publisher.commands import ScriptCommands
from tests.helpers.proxy import Proxy
from tests.helpers.publications import numbered_price, numbered_publication
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS, eventually

CHANNEL = "stock:005930:price"
TOPIC = "stock:005930"
ORDERBOOK = b'{"type":"orderbook_update","stock_code":"005930","bids":[],"asks":[]}'


def prices(count: int, stock_code: str = "005930") -> list[tuple[str, bytes]]:
    """Return publications for `publish_many`, numbered from 1."""
    return [numbered_publication(number, stock_code) for number in range(1, count + 1)]


def history(redis: redis_py.Redis, topic: str = TOPIC) -> list[tuple[int, bytes]]:
    """Return sequence and text of each entry, the oldest first."""
    entries: Any = redis.xrange(history_key(topic))
    return [(int(entry_id.split(b"-")[0]), fields[b"m"]) for entry_id, fields in entries]


def numbers(redis: redis_py.Redis, topic: str = TOPIC) -> list[int]:
    """Return the numbers of the prices in the history, in its order."""
    return [orjson.loads(text)["volume"] for _, text in history(redis, topic)]


@contextlib.contextmanager
def subscribed(redis: redis_py.Redis, *channels: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Subscribe a plain client; give a function that waits for its next message."""
    with redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe(*channels)
        messages = subscription.listen()
        for _ in channels:
            next(messages)
        yield partial(next, messages)


def positions(receipts: Sequence[Receipt | None]) -> list[Position]:
    """Return the positions of publications that all have one."""
    return [receipt.position for receipt in receipts if receipt and receipt.position]


async def held(publisher: Publisher, count: int) -> None:
    """Wait until this many publications are held."""
    await eventually(lambda: publisher.statistics().held == count)


async def acknowledged(publisher: Publisher, least: int) -> None:
    """Wait until this many publications are acknowledged."""
    await eventually(lambda: publisher.statistics().acknowledged >= least)


async def test_positions_count_up_for_all_publishers_and_kinds_of_a_topic(redis_url: str) -> None:
    """Two publishers and both channels of a stock share one sequence; another stock has its own."""
    async with open_publisher(redis_url) as first, open_publisher(redis_url) as second:
        receipts = [
            await first.publish(CHANNEL, numbered_price(1)),
            await second.publish(CHANNEL, numbered_price(2)),
            await second.publish("stock:005930:orderbook", ORDERBOOK),
            await first.publish(CHANNEL, numbered_price(4)),
        ]
        other = await second.publish("stock:000660:price", numbered_price(1, "000660"))
    epoch = positions(receipts)[0].epoch
    assert positions(receipts) == [Position(epoch, sequence) for sequence in range(1, 5)]
    assert other.position is not None
    assert other.position.sequence == 1
    assert other.position.epoch != epoch


async def test_what_is_published_is_the_producers_text_and_its_position(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Subscribers get the bytes that the history keeps: every digit, then epoch and sequence."""
    with subscribed(redis, CHANNEL) as next_message:
        async with open_publisher(redis_url) as publisher:
            receipt = await publisher.publish(CHANNEL, numbered_price(1))
        message = next_message()
    assert receipt.receivers == 1
    assert receipt.position is not None
    end = b',"epoch":"%b","sequence":1}' % receipt.position.epoch.encode()
    assert message["data"] == numbered_price(1)[:-1] + end
    assert history(redis) == [(1, message["data"])]
    entries: Any = redis.xrange(history_key(TOPIC))
    assert entries[0][1][b"k"] == b"price"
    assert redis.hgetall(position_key(TOPIC)) == {
        b"epoch": receipt.position.epoch.encode(),
        b"sequence": b"1",
        b"publisher": f"{socket.gethostname()}:{os.getpid()}".encode(),
        b"last:price": b"%b 1" % receipt.position.epoch.encode(),
    }


async def test_models_may_be_published(redis_url: str, redis: redis_py.Redis) -> None:
    """A model is written as JSON, with its type and the time."""
    async with open_publisher(redis_url) as publisher:
        await publisher.publish(CHANNEL, PriceUpdate("005930", 1.5, 0, 0, 7))
        await publisher.publish("market:KOSPI:status", MarketStatus("KOSPI", MarketPhase.OPEN))
    ((_, text),) = history(redis)
    assert orjson.loads(text).items() >= {"type": "price_update", "price": 1.5, "volume": 7}.items()
    ((_, text),) = history(redis, "market:KOSPI")
    assert orjson.loads(text).items() >= {"status": "open", "sequence": 1}.items()


async def test_messages_to_a_user_share_the_stream_of_the_user(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Alerts and notifications have positions and a history like those of any topic."""
    alert = b'{"alert_id":1,"stock_code":"A","alert_type":"price","message":"up"}'
    note = Notification(7, "t", "m", "news", Priority.LOW)
    with subscribed(redis, "alerts:u1", "notifications:u1") as next_message:
        async with open_publisher(redis_url) as publisher:
            receipts = await publisher.publish_many(
                [("alerts:u1", alert), ("notifications:u1", note), ("alerts:u2", alert)]
            )
        messages = [next_message() for _ in range(2)]
    assert [position.sequence for position in positions(receipts)] == [1, 2, 1]
    assert [m["channel"] for m in messages] == [b"alerts:u1", b"notifications:u1"]
    assert [text for _, text in history(redis, "user:u1")] == [m["data"] for m in messages]


async def test_without_positions_it_is_any_programs_publish(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Subscribers get the producer's text without a position, and Redis keeps nothing of it."""
    with subscribed(redis, CHANNEL) as next_message:
        async with open_publisher(redis_url, positioned=False) as publisher:
            assert await publisher.publish(CHANNEL, numbered_price(1)) == Receipt(None, 1)
        message = next_message()
    assert message["data"] == numbered_price(1)
    assert not redis.keys("*history") + redis.keys("*position")


async def test_a_plain_publisher_needs_no_permission_but_publish(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A Redis user without scripts and keys publishes on its channels, in order."""
    server = own_redis_server(
        user="writer on nopass resetkeys allchannels -@all +publish +client|setname"
    )
    url = f"redis://writer:any@127.0.0.1:{server.port}"
    with server.connect() as redis, subscribed(redis, CHANNEL) as next_message:
        async with open_publisher(url, positioned=False) as publisher:
            with trio.fail_after(DEADLINE_SECONDS):
                receipts = await publisher.publish_many(prices(300))
        assert receipts == [Receipt(None, 1)] * 300
        received = [orjson.loads(next_message()["data"])["volume"] for _ in range(300)]
        assert received == list(range(1, 301))


async def test_a_plain_publication_without_an_answer_fails_and_is_not_sent_again(
    redis_server: RedisServer, redis: redis_py.Redis
) -> None:
    """Publications that were not sent yet follow over the next connection; none is doubled."""
    proxy = Proxy(redis_server.port)
    with subscribed(redis, CHANNEL) as next_message:
        async with (
            proxy.run(),
            open_publisher(
                f"redis://127.0.0.1:{proxy.port}", positioned=False, timeout_seconds=0.3
            ) as publisher,
        ):
            with trio.fail_after(DEADLINE_SECONDS):
                await publisher.publish(CHANNEL, numbered_price(1))
                proxy.deafen()
                with pytest.raises(PublishFailedError, match="may have been published") as failed:
                    await publisher.publish_many(prices(200)[1:])
        assert publisher.statistics().connections == 2
        assert publisher.statistics().held == 0
        # As many as there is room for in the pipeline were sent.
        assert failed.value.unacknowledged == tuple(range(128))
        received = [orjson.loads(next_message()["data"])["volume"] for _ in range(200)]
        assert received == list(range(1, 201))
        redis.publish(CHANNEL, "last")
        assert next_message()["data"] == b"last"


@pytest.mark.parametrize("positioned", [True, False])
async def test_a_publication_that_servers_would_not_take_is_refused(
    redis_url: str, redis: redis_py.Redis, *, positioned: bool
) -> None:
    """No message over the bound is published, its position included, and nothing of its call."""
    with subscribed(redis, CHANNEL) as next_message:
        async with open_publisher(
            redis_url, positioned=positioned, max_publication_bytes=1000
        ) as publisher:
            sizes = []
            for size in range(800, 1010):
                text = numbered_price(1)[:-1] + b',"pad":"%s"}' % (
                    b"x" * (size - len(numbered_price(1)) - 9)
                )
                assert len(text) == size
                with contextlib.suppress(InvalidPublicationError):
                    await publisher.publish_many([(CHANNEL, text)])
                    sizes.append(len(next_message()["data"]))
            large = numbered_price(1)[:-1] + b',"pad":"%s"}' % (b"x" * 1000)
            with pytest.raises(InvalidPublicationError, match="bytes"):
                await publisher.publish_many([*prices(200), (CHANNEL, large)])
        redis.publish(CHANNEL, "last")
        assert next_message()["data"] == b"last"
    assert max(sizes) <= 1000
    assert max(sizes) == 1000 or positioned
    assert len(sizes) > 50


async def test_a_publisher_to_a_channel_for_each_user_does_not_grow(
    redis_url: str, redis: redis_py.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels used longest ago are forgotten; publications under way keep their order."""
    monkeypatch.setattr("streamer.publisher.core._MAX_DESTINATIONS", 10)
    async with open_publisher(redis_url) as publisher:
        publications = [
            (f"stock:{number % 100}:price", numbered_price(number, f"{number % 100}"))
            for number in range(2000)
        ]
        receipts = await publisher.publish_many(publications)
        assert len(publisher._core._destinations) == 10
        gc.collect()
        assert len(publisher._core._streams) <= 10
        commands = publisher._core._commands
        assert isinstance(commands, ScriptCommands)
        assert not commands._last_sent
        again = await publisher.publish("stock:0:price", numbered_price(0, "0"))
    assert [at.sequence for at in positions(receipts)] == [n // 100 + 1 for n in range(2000)]
    assert numbers(redis, "stock:42") == list(range(42, 2000, 100))
    assert again.position is not None
    assert again.position.sequence == 21


@pytest.mark.parametrize("positioned", [True, False])
@pytest.mark.parametrize(
    "reply",
    [
        b"$-1\r\n",
        b"*0\r\n",
        b"*3\r\n$-1\r\n:1\r\n:1\r\n",
        b"*3\r\n$1\r\ne\r\n$-1\r\n:1\r\n",
        b"+OK\r\n",
    ],
)
async def test_a_strange_reply_is_a_lost_connection(
    redis_server: RedisServer, reply: bytes, *, positioned: bool
) -> None:
    """After a reply that is no receipt, the publisher reports it and connects again."""
    proxy = Proxy(redis_server.port)
    async with (
        proxy.run(),
        open_publisher(f"redis://127.0.0.1:{proxy.port}", positioned=positioned) as publisher,
    ):
        with trio.fail_after(DEADLINE_SECONDS):
            await publisher.publish(CHANNEL, numbered_price(1))
            await proxy.inject(reply)
            await eventually(lambda: publisher.statistics().connections == 2)
            proxy.deafen()
            async with trio.open_nursery() as nursery:

                async def publish() -> None:
                    with contextlib.suppress(PublishFailedError):
                        await publisher.publish(CHANNEL, numbered_price(2))

                nursery.start_soon(publish)
                await eventually(lambda: publisher.statistics().held == 1)
                await proxy.inject(reply)
            await eventually(lambda: publisher.statistics().connections == 3)
            assert "unexpected reply" in (publisher.statistics().last_error or "")
            await publisher.publish(CHANNEL, numbered_price(3))


async def test_the_history_is_capped_by_length(redis_url: str, redis: redis_py.Redis) -> None:
    """The history has the newest publications, and at most one block of the stream too many."""
    async with open_publisher(redis_url, history_length=150) as publisher:
        await publisher.publish_many(prices(1000))
    kept = numbers(redis)
    assert kept == list(range(1001 - len(kept), 1001))
    assert 150 <= len(kept) <= 250


async def test_the_history_is_capped_by_age(redis_url: str, redis: redis_py.Redis) -> None:
    """Each publication removes two that are too old; the history expires after the last one."""
    redis.hset(position_key(TOPIC), mapping={"epoch": "e", "sequence": 9})
    for sequence in range(1, 10):
        redis.xadd(history_key(TOPIC), {"m": "", "t": sequence, "k": "price"}, f"{sequence}-0")
    async with open_publisher(redis_url, history_seconds=1000) as publisher:
        for oldest in (3, 5, 7, 9, 10, 10):
            await publisher.publish(CHANNEL, numbered_price(0))
            assert history(redis)[0][0] == oldest
    assert 0 < redis.pttl(history_key(TOPIC)) <= 1_000_000
    assert redis.ttl(position_key(TOPIC)) == -1


async def test_records_of_a_publisher_are_few_and_expire(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """The records that identify retries do not grow with the number of publications."""
    async with open_publisher(redis_url) as publisher:
        await publisher.publish_many(prices(1000))
        (key,) = redis.keys(published_key(TOPIC, "*").replace("{", "\\{"))
    assert redis.hlen(key) <= 129
    assert 0 < redis.ttl(key) < 3600


async def test_an_emptied_redis_begins_a_new_epoch_each_time(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Each time, the sequence starts over in an epoch that was not used before."""
    epochs = set()
    async with open_publisher(redis_url) as publisher:
        for _ in range(3):
            redis.flushall()
            receipts = await publisher.publish_many(prices(3))
            assert [position.sequence for position in positions(receipts)] == [1, 2, 3]
            epochs |= {position.epoch for position in positions(receipts)}
        assert publisher.statistics().connections == 1
    assert len(epochs) == 3


async def test_a_redis_that_lost_writes_begins_a_new_epoch(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """A Redis that is behind its own receipts, as after a failover, gives no sequence twice."""
    async with open_publisher(redis_url) as publisher:
        before = positions(await publisher.publish_many(prices(5)))
        redis.hset(position_key(TOPIC), "sequence", 4)
        receipt = await publisher.publish(CHANNEL, numbered_price(6))
    assert receipt.position is not None
    assert receipt.position.epoch != before[0].epoch
    assert receipt.position.sequence == 1
    assert numbers(redis) == [6]


async def test_a_redis_that_went_back_to_an_older_epoch_begins_a_new_one(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """It lost its data, a new epoch began, and then an old dump brought the former epoch back."""
    async with open_publisher(redis_url) as publisher:
        first = positions(await publisher.publish_many(prices(5)))[-1]
        dump = {key: redis.dump(key) or b"" for key in (position_key(TOPIC), history_key(TOPIC))}
        redis.flushall()
        second = (await publisher.publish(CHANNEL, numbered_price(6))).position
        for key, value in dump.items():
            redis.restore(key, 0, value, replace=True)
        third = (await publisher.publish(CHANNEL, numbered_price(7))).position
    assert second is not None
    assert third is not None
    assert len({first.epoch, second.epoch, third.epoch}) == 3
    assert (second.sequence, third.sequence) == (1, 1)
    assert numbers(redis) == [7]


async def test_a_lost_position_takes_its_history_along(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """The history is of the current epoch only, even if Redis evicted the position alone."""
    async with open_publisher(redis_url) as publisher:
        await publisher.publish_many(prices(5))
        redis.delete(position_key(TOPIC))
        receipt = await publisher.publish(CHANNEL, numbered_price(6))
    assert receipt.position is not None
    assert receipt.position.sequence == 1
    assert numbers(redis) == [6]


@pytest.mark.parametrize(
    ("channel", "payload", "reason"),
    [
        (CHANNEL, b"nonsense", "not JSON"),
        (CHANNEL, numbered_price(1, "000660"), "on the channel of '005930'"),
        (CHANNEL, numbered_price(1)[:-1] + b',"epoch":"e","sequence":1}', "has a position already"),
        ("stock:005930", numbered_price(1), "no channel of data messages"),
        ("sector:IT:orderbook", ORDERBOOK, "no channel 'sector:IT:orderbook'"),
        ("alerts:", b"{}", "no channel of data messages"),
        ("alerts:u1", b"{}", "alert_id"),
    ],
)
async def test_nothing_is_sent_of_a_call_with_an_invalid_publication(
    redis_url: str, redis: redis_py.Redis, channel: str, payload: bytes, reason: str
) -> None:
    """A publication that does not fit its channel is refused before anything is published."""
    async with open_publisher(redis_url) as publisher:
        with pytest.raises(InvalidPublicationError, match=reason):
            await publisher.publish_many([*prices(200), (channel, payload)])
        assert not redis.keys()
        assert await publisher.publish_many([]) == []


async def test_many_tasks_share_a_publisher(redis_url: str, redis: redis_py.Redis) -> None:
    """Each task gets the receipts of its own publications, in order."""
    results: dict[int, list[Position]] = {}
    async with open_publisher(redis_url, hold_messages=20) as publisher:

        async def produce(task: int) -> None:
            calls = [
                await publisher.publish_many([(CHANNEL, numbered_price(task))] * 10)
                for _ in range(5)
            ]
            results[task] = positions([receipt for call in calls for receipt in call])

        async with trio.open_nursery() as nursery:
            for task in range(20):
                nursery.start_soon(produce, task)
    published = dict(history(redis))
    assert len(published) == 1000
    for task, own in results.items():
        assert len(own) == 50
        assert own == sorted(own, key=lambda position: position.sequence)
        assert {orjson.loads(published[at.sequence])["volume"] for at in own} == {task}


async def test_a_killed_redis_loses_and_doubles_nothing(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """After SIGKILL and restart each publication is in the history once, in order."""
    server = own_redis_server(appendonly="yes", appendfsync="always")
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_publisher(server.url, history_length=10_000) as publisher:
            receipts: list[Receipt] = []

            async def produce() -> None:
                receipts.extend(await publisher.publish_many(prices(2500)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce)
                for least in (100, 1000, 2000):
                    await acknowledged(publisher, least)
                    server.kill()
                    server.start()
            assert publisher.statistics().connections >= 4
        with server.connect() as redis:
            assert numbers(redis) == list(range(1, 2501))
    assert [position.sequence for position in positions(receipts)] == list(range(1, 2501))
    assert len({position.epoch for position in positions(receipts)}) == 1


async def test_a_lost_answer_doubles_nothing(
    redis_server: RedisServer, redis: redis_py.Redis
) -> None:
    """The retry of a publication whose answer was lost gets the receipt of the first time."""
    proxy = Proxy(redis_server.port)
    alert = b'{"alert_id":1,"stock_code":"A","alert_type":"price","message":"up"}'
    with subscribed(redis, CHANNEL, "alerts:u1") as next_message:
        async with (
            proxy.run(),
            open_publisher(f"redis://127.0.0.1:{proxy.port}", timeout_seconds=0.3) as publisher,
        ):
            with trio.fail_after(DEADLINE_SECONDS):
                await publisher.publish(CHANNEL, numbered_price(1))
                proxy.deafen()
                receipts = await publisher.publish_many([*prices(3)[1:], ("alerts:u1", alert)])
                statistics = publisher.statistics()
        assert statistics.connections == 2
        assert statistics.last_error == "no answer within 0.3 s"
        assert [position.sequence for position in positions(receipts)] == [2, 3, 1]
        assert [receipt.receivers for receipt in receipts] == [1, 1, 1]
        assert numbers(redis) == [1, 2, 3]
        redis.publish("alerts:u1", "last")
        messages = [next_message() for _ in range(5)]
    assert [m["channel"] for m in messages] == [CHANNEL.encode()] * 3 + [b"alerts:u1"] * 2
    assert messages[-1]["data"] == b"last"


async def test_commands_of_a_connection_given_up_neither_double_nor_overtake(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A Redis that resumes carries out the commands of every connection: none is doubled."""
    server = own_redis_server()
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_publisher(server.url, timeout_seconds=0.2) as publisher:
            await publisher.publish(CHANNEL, numbered_price(0))
            server.pause()
            receipts: list[Receipt] = []

            async def produce() -> None:
                receipts.extend(await publisher.publish_many(prices(300)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce)
                await eventually(lambda: publisher.statistics().last_error is not None)
                assert not publisher.statistics().connected
                server.resume()
        with server.connect() as redis:
            assert numbers(redis) == list(range(301))
    assert [position.sequence for position in positions(receipts)] == list(range(2, 302))


def test_a_publication_waits_for_the_one_before_and_is_not_made_up_for(
    redis: redis_py.Redis,
) -> None:
    """The script refuses a publication out of order, and never publishes one twice."""
    script = files("streamer.publisher").joinpath("publish.lua").read_text()

    def publish(number: int, *, prior: int) -> list[Any]:
        arguments = (number, number % 128, prior, 60, CHANNEL, "{", "price", "e", "", 0, 10, 1000)
        answer: Any = redis.eval(script, 3, "records", "position", "history", *arguments)
        epoch, *others = answer
        return [epoch.partition(b"@")[0], *others]

    with subscribed(redis, CHANNEL):
        assert publish(1, prior=0) == [b"e", 1, 1]
        with pytest.raises(redis_py.ResponseError, match="OUTOFORDER publication 3 after 1"):
            publish(3, prior=2)
        assert publish(2, prior=1) == [b"e", 2, 1]
        assert publish(4, prior=2) == [b"e", 3, 1]
        with pytest.raises(redis_py.ResponseError, match="OUTOFORDER publication 3 after 4"):
            publish(3, prior=0)
    # Nobody is subscribed any more: these are the answers of the first time.
    assert publish(1, prior=0) == [b"e", 1, 1, 1]
    assert publish(4, prior=2) == [b"e", 3, 1, 1]
    assert publish(5, prior=4) == [b"e", 4, 0]


async def test_the_script_is_known_again_after_redis_forgot_it(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """SCRIPT FLUSH between publications costs a reconnect, and no publication."""
    async with open_publisher(redis_url, history_length=10_000) as publisher:
        with trio.fail_after(DEADLINE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher.publish_many, prices(2000))
                await acknowledged(publisher, 100)
                redis.script_flush()
            assert publisher.statistics().connections == 2
    assert numbers(redis) == list(range(1, 2001))


async def test_a_state_that_passes_is_waited_out(
    redis_url: str, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    """A publication is retried while Redis may not write."""
    async with open_publisher(redis_url) as publisher:
        await publisher.publish(CHANNEL, numbered_price(1))
        redis.config_set("maxmemory", 1)
        try:
            with trio.fail_after(DEADLINE_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publisher.publish, CHANNEL, numbered_price(2))
                    await eventually(lambda: "OOM" in (publisher.statistics().last_error or ""))
                    redis.config_set("maxmemory", 0)
        finally:
            redis.config_set("maxmemory", 0)
    assert numbers(redis) == [1, 2]


async def test_redis_may_come_after_the_publisher(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Publications are held until Redis can be reached for the first time."""
    server = own_redis_server()
    server.stop()
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_publisher(server.url) as publisher, trio.open_nursery() as nursery:
            nursery.start_soon(publisher.publish_many, prices(3))
            await eventually(lambda: publisher.statistics().last_error is not None)
            assert not publisher.statistics().connected
            server.start()
    with server.connect() as redis:
        assert numbers(redis) == [1, 2, 3]


async def test_what_redis_does_not_acknowledge_in_time_has_failed(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """After the hold time the call fails with the reason; the next call is not affected."""
    server = own_redis_server()
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_publisher(server.url, hold_seconds=0.2) as publisher:
            await publisher.publish(CHANNEL, numbered_price(1))
            server.stop()
            with pytest.raises(PublishFailedError, match="nothing acknowledged") as failed:
                await publisher.publish_many(prices(3))
            assert str(server.port) in failed.value.reason
            assert failed.value.unacknowledged == (0, 1, 2)
            assert failed.value.receipts == (None, None, None)
            assert publisher.statistics().held == 0
            server.start()
            await eventually(lambda: publisher.statistics().connected)
            receipt = await publisher.publish(CHANNEL, numbered_price(4))
        with server.connect() as redis:
            assert numbers(redis) == [4]
    assert receipt.position is not None
    assert receipt.position.sequence == 1


async def test_a_silent_redis_has_not_acknowledged(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A call fails where Redis is connected but does not answer."""
    server = own_redis_server()
    server.pause()
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_publisher(server.url, hold_seconds=0.3, timeout_seconds=0.1) as publisher:
            with pytest.raises(PublishFailedError, match="1 of 1 not acknowledged"):
                await publisher.publish(CHANNEL, numbered_price(1))
            server.resume()


async def test_what_was_acknowledged_before_redis_went_is_told(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The error has the receipts of the publications that were acknowledged."""
    server = own_redis_server()
    failures: list[PublishFailedError] = []
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_publisher(server.url, hold_seconds=0.2) as publisher:

            async def produce() -> None:
                try:
                    await publisher.publish_many(prices(5000))
                except PublishFailedError as error:
                    failures.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce)
                await acknowledged(publisher, 100)
                server.kill()
            (failed,) = failures
            count = publisher.statistics().acknowledged
    assert [at.sequence for at in positions(failed.receipts)] == list(range(1, count + 1))
    assert failed.unacknowledged == tuple(range(count, 5000))


async def test_no_more_is_held_than_the_bound(own_redis_server: Callable[..., RedisServer]) -> None:
    """While Redis is away, a call over the bound fails at once; held ones are published."""
    server = own_redis_server()
    server.stop()
    with trio.fail_after(DEADLINE_SECONDS):
        async with (
            open_publisher(server.url, hold_seconds=60, hold_messages=3) as publisher,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(publisher.publish_many, prices(3))
            await held(publisher, 3)
            with pytest.raises(PublishFailedError, match="3 publications are held already"):
                await publisher.publish_many(prices(2))
            server.start()
        with server.connect() as redis:
            assert numbers(redis) == [1, 2, 3]


async def test_what_redis_refuses_stops_nothing_else(redis_url: str, redis: redis_py.Redis) -> None:
    """Only the publication on a topic whose history is no stream fails, with Redis' reason."""
    redis.hset(position_key("stock:000660"), mapping={"epoch": "e", "sequence": 7})
    redis.set(history_key("stock:000660"), "no stream")
    async with open_publisher(redis_url) as publisher:
        with pytest.raises(PublishRefusedError, match="refused stock:000660:price") as refused:
            await publisher.publish_many([*prices(1), *prices(3, "000660"), *prices(1)])
        assert "WRONGTYPE" in refused.value.reason
        assert refused.value.unacknowledged == (1, 2, 3)
        assert [at.sequence for at in positions(refused.value.receipts)] == [1, 2]
        redis.delete(history_key("stock:000660"))
        receipt = await publisher.publish("stock:000660:price", numbered_price(1, "000660"))
    assert receipt.position == Position("e", 8)


async def test_a_publisher_without_permission_is_told_at_once(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Where the ACL forbids scripts, the call fails without a retry."""
    server = own_redis_server(user="writer on nopass allchannels allkeys +publish +client")
    async with open_publisher(f"redis://writer:any@127.0.0.1:{server.port}") as publisher:
        with trio.fail_after(DEADLINE_SECONDS), pytest.raises(PublishRefusedError, match="NOPERM"):
            await publisher.publish(CHANNEL, numbered_price(1))


async def test_a_long_call_has_the_time_it_takes(
    redis_url: str, mock_clock: trio.testing.MockClock
) -> None:
    """The bound is on the time without an answer, not on the whole call."""
    mock_clock.rate = 1
    async with open_publisher(redis_url, hold_seconds=100, timeout_seconds=600) as publisher:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.publish_many, prices(2000))
            for least in (100, 1000):
                await acknowledged(publisher, least)
                mock_clock.jump(90)
        assert publisher.statistics().acknowledged == 2000


async def test_an_idle_connection_is_kept(
    redis_url: str, mock_clock: trio.testing.MockClock
) -> None:
    """A connection over which nothing is sent is not closed for its silence."""
    mock_clock.rate = 1
    async with open_publisher(redis_url) as publisher:
        await publisher.publish(CHANNEL, numbered_price(1))
        mock_clock.jump(1000)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(DEADLINE_SECONDS):
            await publisher.publish(CHANNEL, numbered_price(2))
        assert publisher.statistics().connections == 1


async def test_a_cancelled_call_is_forgotten(own_redis_server: Callable[..., RedisServer]) -> None:
    """Unsent publications of the call are dropped, and the next call gets its own receipts."""
    server = own_redis_server()
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_publisher(server.url) as publisher:
            await publisher.publish(CHANNEL, numbered_price(0))
            server.pause()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher.publish_many, prices(500))
                await held(publisher, 500)
                nursery.cancel_scope.cancel()
            assert publisher.statistics().held <= 128
            server.resume()
            receipt = await publisher.publish(CHANNEL, numbered_price(999))
            assert publisher.statistics().connections == 1
        with server.connect() as redis:
            published = numbers(redis)
    assert receipt.position is not None
    assert published == [*range(len(published) - 1), 999]
    assert receipt.position.sequence == len(published) <= 130


async def test_cancelled_publications_under_way_are_not_sent_again(
    redis_server: RedisServer, redis: redis_py.Redis
) -> None:
    """After a lost connection, publications of cancelled calls are not retried."""
    proxy = Proxy(redis_server.port)
    async with (
        proxy.run(),
        open_publisher(f"redis://127.0.0.1:{proxy.port}", timeout_seconds=0.3) as publisher,
    ):
        with trio.fail_after(DEADLINE_SECONDS):
            await publisher.publish(CHANNEL, numbered_price(0))
            proxy.deafen()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher.publish_many, prices(50))
                await eventually(lambda: len(history(redis)) == 51)
                redis.flushall()
                nursery.cancel_scope.cancel()
            receipt = await publisher.publish(CHANNEL, numbered_price(999))
    assert numbers(redis) == [999]
    assert receipt.position is not None
    assert receipt.position.sequence == 1


async def test_errors_leave_the_block_as_they_are(redis_url: str) -> None:
    """An exception of the block is raised without a group around it."""
    with pytest.raises(ZeroDivisionError):
        async with open_publisher(redis_url):
            raise ZeroDivisionError


async def test_a_bad_url_is_told_at_once() -> None:
    """A bad URL is refused when the publisher is opened, not at the first attempt to connect."""
    with pytest.raises(ValueError, match="not a Redis URL"):
        async with open_publisher("localhost:6379"):
            pass


async def test_a_strange_entry_in_the_history_does_not_stop_a_topic(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Another program left an entry without the fields that the script writes; it goes as old."""
    async with open_publisher(redis_url) as publisher:
        for number in (1, 2, 3):
            receipt = await publisher.publish(*numbered_publication(number))
            assert receipt.position is not None
            assert receipt.position.sequence == number
            if number == 1:
                redis.delete(history_key(TOPIC))
                redis.xadd(history_key(TOPIC), {"strange": "entry"}, id="1-1")
    assert [sequence for sequence, _ in history(redis)] == [2, 3]


@pytest.mark.parametrize("entry_id", ["9-0", "*"])
async def test_a_history_beyond_its_position_does_not_stop_a_topic(
    redis_url: str, redis: redis_py.Redis, entry_id: str
) -> None:
    """Entries beyond the position are forgotten, and a new epoch begins."""
    async with open_publisher(redis_url) as publisher:
        first = await publisher.publish(*numbered_publication(1))
        redis.xadd(history_key(TOPIC), {"m": "{}"}, id=entry_id)
        second = await publisher.publish(*numbered_publication(2))
        third = await publisher.publish(*numbered_publication(3))
    assert first.position is not None
    assert second.position is not None
    assert second.position.epoch != first.position.epoch
    assert second.position.sequence == 1
    assert third.position == Position(second.position.epoch, 2)
    assert [sequence for sequence, _ in history(redis)] == [1, 2]


@pytest.mark.parametrize("sequence", ["strange", str(2**53 - 1), str(2**53), "nan"])
async def test_a_strange_position_does_not_stop_a_topic(
    redis_url: str, redis: redis_py.Redis, sequence: str
) -> None:
    """A position that cannot be continued is followed by a new epoch."""
    async with open_publisher(redis_url) as publisher:
        first = await publisher.publish(*numbered_publication(1))
        redis.hset(position_key(TOPIC), "sequence", sequence)
        second = await publisher.publish(*numbered_publication(2))
    assert first.position is not None
    assert second.position is not None
    assert second.position.epoch != first.position.epoch
    assert second.position.sequence == 1
