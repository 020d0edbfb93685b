"""The reader on real Redis servers that are cut off, stopped, killed and made deaf.

Covers streamer.broker.pubsub.
"""

import math
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_py
import trio
import trustme

from streamer.broker.pubsub import Message
from streamer.broker.reader import ServerReader
from tests.broker.recorder import Recorder, running
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.timing import DEADLINE_SECONDS, eventually


def impatient_reader(
    url: str, handler: Recorder, *, probe_timeout_seconds: float = 10.0
) -> ServerReader:
    """Make a reader that retries and probes quickly; no test relies on how quickly."""
    return ServerReader(
        url,
        handler,
        probe_interval_seconds=0.02,
        probe_timeout_seconds=probe_timeout_seconds,
        connect_timeout_seconds=probe_timeout_seconds,
        backoff_seconds=0.01,
        max_backoff_seconds=0.05,
    )


def subscribed_channels(redis: redis_py.Redis) -> set[bytes]:
    """Return the channels with subscribers, except those of probes."""
    channels: Any = redis.pubsub_channels()
    return {name for name in channels if not name.startswith(b"streamer:probe:")}


async def test_publications_arrive_whole_and_in_order(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Publications of any program reach the handler byte for byte, far beyond one read."""
    recorder = Recorder()
    reader = ServerReader(redis_url, recorder)
    reader.subscribe(["a", "b"])
    published = [
        (b"ab"[n % 2 :][:1], b"%d\r\n\0\xff" % n + b"x" * (n % 7) * 40) for n in range(5_000)
    ]
    published.append((b"a", b"y" * 1_000_000))
    async with running(reader) as connected:
        assert connected
        assert await recorder.next_event() == ("connected",)
        with redis.pipeline(transaction=False) as pipeline:
            for channel, payload in published:
                pipeline.publish(channel.decode(), payload)
            await trio.to_thread.run_sync(pipeline.execute)
        for channel, payload in published:
            assert await recorder.next_event() == ("message", channel, payload)
        statistics = reader.statistics()
    assert statistics.messages == len(published)
    assert statistics.bytes_received > sum(len(payload) for _, payload in published)
    assert (statistics.channels_wanted, statistics.channels_confirmed) == (2, 2)
    assert statistics.reconnects == 0
    assert not reader.connected


async def test_only_what_is_wanted_is_subscribed(redis_url: str, redis: redis_py.Redis) -> None:
    """Redis has a subscription for each wanted channel; asking twice changes nothing."""
    recorder = Recorder()
    reader = ServerReader(redis_url, recorder)
    reader.subscribe(["a", "b", "b"])
    async with running(reader):
        assert subscribed_channels(redis) == {b"a", b"b"}
        reader.subscribe(["b", "c:*"])
        await reader.wait_subscribed(["a", "b", "c:*"])
        assert subscribed_channels(redis) == {b"a", b"b", b"c:*"}
        reader.unsubscribe(["a", "b"])
        reader.unsubscribe(["a", "never"])
        await eventually(lambda: subscribed_channels(redis) == {b"c:*"})
        assert redis.publish("a", "nobody hears") == 0
        assert redis.publish("c:d", "no pattern") == 0
        assert redis.publish("c:*", "heard") == 1
        assert await recorder.next_event() == ("connected",)
        assert await recorder.next_event() == ("message", b"c:*", b"heard")
    assert reader.statistics().channels_wanted == 1


async def test_waiting_means_that_nothing_published_from_then_on_is_missed(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """Through subscribe, unsubscribe, subscribe in a row, a confirmation is never an old one."""
    recorder = Recorder()
    reader = ServerReader(redis_url, recorder)
    async with running(reader):
        await recorder.connected()
        for round_number in range(50):
            reader.subscribe(["a"])
            await trio.lowlevel.checkpoint()
            reader.unsubscribe(["a"])
            await trio.lowlevel.checkpoint()
            reader.subscribe(["a"])
            await reader.wait_subscribed(["a"])
            assert redis.publish("a", round_number) == 1
            assert await recorder.next_event() == ("message", b"a", b"%d" % round_number)
            reader.unsubscribe(["a"])


async def test_many_channels_take_few_commands(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Ten thousand channels are subscribed in about twenty commands, again after a reconnect."""
    server = own_redis_server()
    recorder = Recorder()
    reader = impatient_reader(server.url, recorder)
    channels = [f"stock:{number}:price" for number in range(10_000)]
    reader.subscribe(channels)
    with server.connect() as redis:
        async with running(reader):
            assert redis.info("commandstats")["cmdstat_subscribe"]["calls"] == 21
            assert reader.statistics().channels_confirmed == len(channels)
            redis.client_kill_filter(_type="pubsub")
            await recorder.lost()
            await recorder.connected()
            assert subscribed_channels(redis) == {channel.encode() for channel in channels}


async def test_a_reader_without_redis_reports_it_and_goes_on_trying(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Channels that are wanted while Redis is away are subscribed when it appears."""
    server = own_redis_server()
    server.stop()
    recorder = Recorder()
    reader = impatient_reader(server.url, recorder)
    reader.subscribe(["early"])
    async with running(reader) as connected:
        assert not connected
        assert not reader.connected
        assert not reader.ready
        assert str(server.port) in (reader.last_error or "")
        reader.subscribe(["late"])
        server.start()
        assert await recorder.next_event() == ("connected",)  # not lost: it never was there
        with server.connect() as redis:
            assert subscribed_channels(redis) == {b"early", b"late"}
        await eventually(lambda: reader.ready)
    assert reader.statistics().reconnects == 0


async def test_a_connection_that_delivered_before_it_was_complete_is_lost_too(
    redis_server: RedisServer, redis: redis_py.Redis
) -> None:
    """Messages of the next connection do not follow its messages, so the loss is reported."""
    proxy = Proxy(redis_server.port)
    proxy.withheld = b"streamer:probe:"  # the last channel that is confirmed
    recorder = Recorder()
    async with proxy.run(), trio.open_nursery() as nursery:
        reader = impatient_reader(f"redis://127.0.0.1:{proxy.port}", recorder)
        reader.subscribe(["a"])
        nursery.start_soon(reader.run)
        with trio.fail_after(DEADLINE_SECONDS):
            await eventually(lambda: redis.pubsub_numsub("a") == [(b"a", 1)])
            redis.publish("a", b"1")
            assert await recorder.next_event() == ("message", b"a", b"1")
            assert not reader.connected
            proxy.break_off(1)
            assert (await recorder.next_event())[0] == "lost"
            proxy.withheld = None
            assert await recorder.next_event() == ("connected",)
        nursery.cancel_scope.cancel()


async def test_every_lost_connection_is_reported_and_regained(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """After each CLIENT KILL, the channels are subscribed again; lost and connected alternate."""
    recorder = Recorder()
    reader = impatient_reader(redis_url, recorder)
    reader.subscribe(["a"])
    async with running(reader):
        assert await recorder.next_event() == ("connected",)
        for cut in range(10):
            redis.client_kill_filter(_type="pubsub")
            assert (await recorder.next_event())[0] == "lost"
            assert await recorder.next_event() == ("connected",)
            assert redis.publish("a", cut) == 1
            assert await recorder.next_event() == ("message", b"a", b"%d" % cut)
        assert reader.statistics().reconnects == 10


@pytest.mark.parametrize(("lasting_seconds", "grows"), [(math.inf, True), (0, False)])
async def test_only_a_connection_that_lasted_starts_the_backoff_anew(
    redis_url: str, redis: redis_py.Redis, lasting_seconds: float, grows: bool
) -> None:
    """One that Redis closes at once, as for its size, must not be made again without a pause."""
    recorder = Recorder()
    reader = ServerReader(
        redis_url,
        recorder,
        backoff_seconds=0.01,
        max_backoff_seconds=0.05,
        lasting_seconds=lasting_seconds,
    )
    async with running(reader):
        for _ in range(5):
            await recorder.connected()
            redis.client_kill_filter(_type="pubsub")
            await recorder.lost()
        await recorder.connected()
        assert (reader._backoff.failures >= 5) is grows


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
async def test_a_restarted_redis_is_found_again(
    own_redis_server: Callable[..., RedisServer], end: Callable[[RedisServer], None]
) -> None:
    """Stopped or killed, the loss is reported at once, and the next server is read."""
    server = own_redis_server()
    recorder = Recorder()
    reader = impatient_reader(server.url, recorder)
    reader.subscribe(["a"])
    async with running(reader):
        assert await recorder.next_event() == ("connected",)
        end(server)
        assert (await recorder.next_event())[0] == "lost"
        assert not reader.connected
        assert reader.statistics().channels_confirmed == 0
        server.start()
        await recorder.connected()
        with server.connect() as redis:
            assert redis.publish("a", "x") == 1
        assert await recorder.next_event() == ("message", b"a", b"x")


async def test_a_stopped_process_is_noticed_by_the_probe(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The connection to a Redis that stays open but is silent is closed, and made again later."""
    server = own_redis_server()
    recorder = Recorder()
    reader = impatient_reader(server.url, recorder, probe_timeout_seconds=0.5)
    reader.subscribe(["a"])
    async with running(reader):
        await recorder.connected()
        await eventually(lambda: reader.ready)
        server.pause()
        assert (await recorder.lost()).startswith("probe timeout")
        assert not reader.ready
        assert not reader.connected
        server.resume()
        await recorder.connected()
        await eventually(lambda: reader.ready)
        with server.connect() as redis:
            assert redis.publish("a", "x") == 1
        assert await recorder.next_event() == ("message", b"a", b"x")


async def test_a_deaf_connection_is_noticed_by_the_probe(
    redis_server: RedisServer, redis: redis_py.Redis
) -> None:
    """A pub/sub connection without messages is replaced, although every new connection works."""
    proxy = Proxy(redis_server.port)
    recorder = Recorder()
    async with proxy.run():
        reader = impatient_reader(
            f"redis://127.0.0.1:{proxy.port}", recorder, probe_timeout_seconds=0.5
        )
        reader.subscribe(["a"])
        async with running(reader):
            await recorder.connected()
            await eventually(lambda: reader.ready)
            proxy.deafen()
            assert (await recorder.lost()).startswith("probe timeout")
            await recorder.connected()
            assert redis.publish("a", "x") == 1
            assert await recorder.next_event() == ("message", b"a", b"x")


async def test_a_probe_that_is_refused_costs_readiness_not_the_subscription(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Where the probe may not be published, messages arrive, and the reader is not ready."""
    server = own_redis_server(user="reader on nopass allchannels +subscribe +unsubscribe +client")
    recorder = Recorder()
    reader = impatient_reader(f"redis://reader:any@127.0.0.1:{server.port}", recorder)
    reader.subscribe(["a"])
    async with running(reader) as connected:
        assert connected
        await eventually(lambda: "probe not published: NOPERM" in (reader.last_error or ""))
        assert reader.connected
        assert not reader.ready
        with server.connect() as redis:
            redis.publish("a", "x")
            assert await recorder.next_event() == ("connected",)
            assert await recorder.next_event() == ("message", b"a", b"x")
            redis.execute_command("ACL", "SETUSER", "reader", "+publish")
            await eventually(lambda: reader.ready)
            assert reader.statistics().probe_round_trip_seconds is not None
            redis.execute_command("CONFIG", "SET", "maxclients", 1)  # the subscription itself stays
            await eventually(lambda: "max number of clients" in (reader.last_error or ""))
            assert reader.connected
            assert not reader.ready


async def test_a_forbidden_channel_is_refused_alone(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Channels that the Redis user may not read are reported; the others lose nothing."""
    server = own_redis_server(user="reader on nopass resetchannels &streamer:* &a &b &d +@all")
    recorder = Recorder()
    reader = impatient_reader(f"redis://reader:any@127.0.0.1:{server.port}", recorder)
    reader.subscribe(["a"])
    async with running(reader) as connected:
        assert connected
        await recorder.connected()
        reader.subscribe(["b", "forbidden", "d", "e"])
        await reader.wait_subscribed(["a", "b", "forbidden", "d", "e"])
        events = [await recorder.next_event() for _ in range(2)]
        assert sorted(event[:2] for event in events) == [
            ("refused", b"e"),
            ("refused", b"forbidden"),
        ]
        assert "NOPERM" in (reader.refusal("forbidden") or "")
        assert reader.refusal("b") is None
        statistics = reader.statistics()
        assert (statistics.channels_confirmed, statistics.channels_refused) == (3, 2)
        with server.connect() as redis:
            for channel in ("a", "b", "d"):
                assert redis.publish(channel, "x") == 1
                assert await recorder.next_event() == ("message", channel.encode(), b"x")
        await eventually(lambda: reader.ready)
        assert reader.statistics().reconnects == 0
        reader.unsubscribe(["e"])
        assert reader.statistics().channels_refused == 1


async def test_a_refused_channel_is_read_once_it_is_permitted(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The channel is tried again after each probe, and the handler is notified when it is read."""
    server = own_redis_server(user="reader on nopass resetchannels &streamer:* &a +@all")
    recorder = Recorder()
    reader = impatient_reader(f"redis://reader:any@127.0.0.1:{server.port}", recorder)
    reader.subscribe(["a", "b"])
    async with running(reader) as connected:
        assert connected
        assert (await recorder.next_event())[:2] == ("refused", b"b")
        assert await recorder.next_event() == ("connected",)
        with server.connect() as redis:
            redis.execute_command("ACL", "SETUSER", "reader", "&b")
            assert await recorder.next_event() == ("accepted", b"b")
            assert reader.refusal("b") is None
            assert redis.publish("b", "x") == 1
            assert await recorder.next_event() == ("message", b"b", b"x")
            # Redis cuts off who is subscribed to what it may not read any more.
            redis.execute_command("ACL", "SETUSER", "reader", "resetchannels", "&streamer:*", "&a")
            await recorder.lost()
            assert (await recorder.next_event())[:2] == ("refused", b"b")
            await recorder.connected()
            assert redis.publish("a", "x") == 1
            assert await recorder.next_event() == ("message", b"a", b"x")


async def test_a_user_who_may_not_subscribe_is_not_connected(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """Where even the probe's channel is refused, the error gives Redis' reason."""
    server = own_redis_server(user="reader on nopass allchannels +@all -subscribe")
    reader = impatient_reader(f"redis://reader:any@127.0.0.1:{server.port}", Recorder())
    reader.subscribe(["a"])
    async with running(reader) as connected:
        assert not connected
        assert "NOPERM" in (reader.last_error or "")


@pytest.mark.parametrize(
    "reply",
    [
        b"$-1\r\n",
        b":7\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$-1\r\n",
        b"*3\r\n$7\r\nmessage\r\n*0\r\n$1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:1\r\n",
        b"*3\r\n$4\r\npong\r\n$1\r\na\r\n$1\r\nx\r\n",
        b"*3\r\n$9\r\nsubscribe\r\n$-1\r\n:1\r\n",
        b"*3\r\n$9\r\nsubscribe\r\n$7\r\nunasked\r\n:1\r\n",
        b"-ERR whatever\r\n",
        b"-NOPERM whatever\r\n",
        b"HTTP/1.1 400\r\n",
    ],
)
async def test_a_strange_reply_is_a_lost_connection(
    reply: bytes, redis_server: RedisServer
) -> None:
    """Whatever comes on the pub/sub connection, the reader gives its reason and connects again."""

    class Strict(Recorder):
        def on_messages(self, messages: list[Message]) -> None:
            """Take messages as the router does."""
            for channel, payload in messages:
                hash(channel)
                len(payload)
            super().on_messages(messages)

    proxy = Proxy(redis_server.port)
    recorder = Strict()
    async with proxy.run():
        reader = impatient_reader(f"redis://127.0.0.1:{proxy.port}", recorder)
        reader.subscribe(["a"])
        async with running(reader):
            await recorder.connected()
            await proxy.inject(reply)
            assert await recorder.lost()
            await recorder.connected()


async def test_tls_carries_the_flow(
    redis_server: RedisServer, redis: redis_py.Redis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over rediss:// a burst of many TLS records arrives whole."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    proxy = Proxy(redis_server.port, context)
    recorder = Recorder()
    async with proxy.run():
        reader = ServerReader(f"rediss://localhost:{proxy.port}?ssl_ca_certs={ca_file}", recorder)
        reader.subscribe(["a"])
        async with running(reader) as connected:
            assert connected
            await recorder.connected()
            with redis.pipeline(transaction=False) as pipeline:
                for number in range(3_000):
                    pipeline.publish("a", b"%d" % number * 50)
                await trio.to_thread.run_sync(pipeline.execute)
            for number in range(3_000):
                assert await recorder.next_event() == ("message", b"a", b"%d" % number * 50)
            await eventually(lambda: reader.ready)


async def test_a_bug_in_the_handler_is_not_a_lost_connection(
    redis_url: str, redis: redis_py.Redis
) -> None:
    """An exception of the handler leaves `run`: a broken hub must not look like a broken Redis."""

    class Broken(Recorder):
        def on_messages(self, messages: list[Message]) -> None:  # noqa: ARG002
            raise ZeroDivisionError

    reader = ServerReader(redis_url, Broken())
    reader.subscribe(["a"])
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with running(reader):
            redis.publish("a", "x")
            await trio.sleep_forever()


def test_a_bad_url_is_an_error_at_once() -> None:
    """A bad URL is refused when the reader is made, not at the first attempt to connect."""
    with pytest.raises(ValueError, match="not a Redis URL"):
        ServerReader("localhost:6379", Recorder())
