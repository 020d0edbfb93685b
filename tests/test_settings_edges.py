"""Every setting that is a number, at its least and its greatest value: the server stays whole.

The edges are read from the settings' own rules, so a new setting is tested as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

from streamer.config import Settings
from streamer.publisher.publisher import open_publisher
from streamer.server import Server
from tests.helpers.clients import Client, connected
from tests.helpers.publications import price
from tests.helpers.server import get_page, publish, running_server
from tests.helpers.timing import FLOW_DEADLINE_SECONDS, eventually

NOT_A_SERVER_OF_TODAY = {
    "port": "the kernel decides which ports can be listened on",
    "http_port": "likewise",
    "workers": "the command line starts workers; the server itself is one of them",
}

EDGES = [
    pytest.param(field.name, value, id=f"{field.name}={value:g}")
    for field in attrs.fields(Settings)
    if field.name not in NOT_A_SERVER_OF_TODAY
    for value in getattr(field.validator, "edges", None) or ()
]

UNABLE_TO_ASK = {"max_message_bytes": 1}
"""Settings with which no client can ask for anything."""

WITHOUT_PUBLICATIONS = {"max_publication_bytes": 1}
"""Settings with which no publication is taken."""

RESTORED_FROM_THE_STORE = {"max_session_bytes": 0}
"""Settings with which a session has to be found in Redis, where it may be about to be saved."""

ATTEMPT_SECONDS = 2.0
"""Real seconds that a server has to reach Redis before it is let try again."""

LONGEST_BACKOFF_SECONDS = 3.0
"""Virtual seconds after which it does."""

HEARTBEAT_SECONDS = 27
"""Virtual seconds in which every client of a server with the default interval has been pinged."""

EXPECTED_WARNINGS = {
    "publication rejected",  # where none is taken
    "source lost",  # the clock jumps while a probe is under way
    "control channel lost",  # likewise
}


@pytest.fixture(params=["memory", "redis"])
def source(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings that name the source."""
    if request.param == "memory":
        return {"memory": True}
    return {"redis": request.getfixturevalue("redis_url")}


class Producer:
    """Publishes prices of stock:A, plainly, and with Redis of stock:B with positions."""

    def __init__(self, server: Server, url: str | None) -> None:
        self._server = server
        self._url = url

    @property
    def topics(self) -> list[str]:
        """The topics that it publishes and that a client may have."""
        topics = ["stock:A"] if self._url is None else ["stock:B", "stock:A"]
        settings = self._server.settings
        return topics[: min(settings.max_subscriptions, settings.max_targets_per_request)]

    async def publish(self, value: int) -> None:
        """Publish one price of each topic, and wait until Redis has it."""
        if self._url is None:
            publish(self._server, "stock:A:price", price("A", value))
            return
        settings = self._server.settings
        async with open_publisher(
            self._url,
            history_length=settings.history_length,
            history_seconds=settings.history_seconds,
        ) as publisher:
            await publisher.publish("stock:B:price", price("B", value))
        async with open_publisher(self._url, positioned=False) as publisher:
            await publisher.publish("stock:A:price", price("A", value))


async def receive_prices(
    client: Client, producer: Producer, value: int, pass_interval: Callable[[], None]
) -> None:
    """Read data messages until the price of each topic is there, live, replayed or after a gap."""
    missing = {topic.removeprefix("stock:") for topic in producer.topics}
    while missing:
        message = await client.data()
        assert message["type"] in {"price_update", "gap"}, message
        if message.get("price") == value:
            missing.discard(message["stock_code"])
        pass_interval()


@pytest.mark.parametrize(("name", "value"), EDGES)
async def test_a_server_serves_with_every_setting_at_its_edges(
    name: str, value: float, source: dict[str, Any], mock_clock: MockClock
) -> None:
    """A client gets prices, is away for one, and has the newest after it came back.

    Then the clock jumps past a heartbeat and past the intervals at which sessions are saved,
    histories expire and Redis is probed, so that each of these has run. Nothing may be amiss.
    """
    with structlog.testing.capture_logs() as logs:
        async with running_server(**source, **{name: value}) as server:
            await until_ready(server, mock_clock)
            if UNABLE_TO_ASK.get(name) != value:
                producer = Producer(server, source.get("redis"))
                await exchange(server, producer, mock_clock, name, value)
            for _ in range(3):
                mock_clock.jump(1.1)
                assert (await get_page(server, "/healthz"))[0] == 200
                await get_page(server, "/v1/ws/stats")
    complaints = [
        entry
        for entry in logs
        if entry["log_level"] in {"warning", "error", "critical"}
        and entry["event"] not in EXPECTED_WARNINGS
        and entry.get("reason") != "no reply from Redis"  # the clock jumped meanwhile
    ]
    assert complaints == []


async def until_ready(server: Server, clock: MockClock) -> None:
    """Wait until the server is ready, and let it try again if it has lost Redis.

    To reach Redis takes real time, on a busy machine more than the least time-out of a probe.
    """
    with trio.fail_after(FLOW_DEADLINE_SECONDS):  # virtual time, which passes only here
        while not server.readiness().ready:
            with suppress(TimeoutError):
                await eventually(lambda: server.readiness().ready, seconds=ATTEMPT_SECONDS)
                return
            clock.jump(LONGEST_BACKOFF_SECONDS)


async def exchange(
    server: Server, producer: Producer, clock: MockClock, name: str, value: float
) -> None:
    """Subscribe, receive, leave, restore, receive, answer a heartbeat."""

    def pass_interval() -> None:
        clock.jump(server.settings.flush_interval_seconds + 0.01)

    async with connected(server) as client:
        await client.subscribe(*producer.topics)
        await producer.publish(1)
        if WITHOUT_PUBLICATIONS.get(name) == value:
            return
        await receive_prices(client, producer, 1, pass_interval)
        session_id = client.session_id
    await eventually(lambda: server.active_connections == 0)
    clock.jump(1.1)  # the session is saved
    await producer.publish(2)
    async with connected(server) as client:
        clock.rate = 1 if RESTORED_FROM_THE_STORE.items() & {name: value}.items() else 0
        answer = await client.request(type="reconnect", session_id=session_id)
        clock.rate = 0
        if answer["type"] == "error":
            assert answer["code"] == "SESSION_RESTORATION_FAILED"
            await client.subscribe(*producer.topics)
        await producer.publish(3)
        pass_interval()
        await receive_prices(client, producer, 3, pass_interval)
        for _ in range(HEARTBEAT_SECONDS):
            clock.jump(1)
            await client.send(type="ping")
            while (await client.receive())["type"] != "pong":
                pass
