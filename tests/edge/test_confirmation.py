"""Pings between heartbeats: how much a session that is restored by its URL sends again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from trio.testing import MockClock

from streamer.edge import confirmation
from streamer.protocol.endpoint import WEBSOCKET_PATH
from streamer.server import Server
from tests.helpers.clients import Client, connected, open_client, raw_client
from tests.helpers.publications import price
from tests.helpers.server import first_session, publish, running_server
from tests.helpers.timing import eventually

AT_ONCE = {"flush_interval_ms": 0.0}


async def receive(client: Client, count: int) -> list[Any]:
    """Return the prices of the next messages."""
    return [(await client.data())["price"] for _ in range(count)]


async def take_turns(mock_clock: MockClock, client: Client) -> None:
    """Let all clients be looked at, those too that have just connected."""
    for _ in range(3):
        mock_clock.jump(confirmation._INTERVAL_SECONDS)
        await client.ping_pong()


async def publish_and_receive(server: Server, client: Client, first: int, count: int) -> None:
    """Publish prices and receive them."""
    for number in range(first, first + count):
        publish(server, "stock:A:price", price("A", number))
    assert await receive(client, count) == list(range(first, first + count))


def confirmed(server: Server, session_id: str) -> int:
    """Return the sequence that a client has confirmed."""
    outbox = server._acceptor.sessions[session_id].outbox
    (subscription,) = outbox.subscriptions.values()
    return subscription.confirmed.sequence


@asynccontextmanager
async def restored(server: Server, session_id: str) -> AsyncIterator[tuple[Client, Any]]:
    """Open a client that restores a session by its URL."""
    async with open_client(server, path=f"{WEBSOCKET_PATH}?session_id={session_id}") as client:
        await client.receive_type("connected")
        yield client, await client.receive_type("reconnected")


async def test_many_messages_are_confirmed_soon(mock_clock: MockClock) -> None:
    """A client that has received all of a busy topic is sent little of it again, and no gap."""
    async with running_server(**AT_ONCE) as server:
        async with connected(server) as client:
            await client.subscribe("stock:A")
            for part in range(20):
                await publish_and_receive(server, client, 250 * part, 250)
                await take_turns(mock_clock, client)
                await eventually(lambda: confirmed(server, client.session_id) == 250 * (part + 1))  # noqa: B023
            await publish_and_receive(server, client, 5000, 100)
        async with restored(server, client.session_id) as (again, answer):
            assert (answer["missed_messages_count"], answer["recovered"]) == (100, True)
            assert await receive(again, 100) == list(range(5000, 5100))


async def test_few_messages_are_confirmed_within_seconds(mock_clock: MockClock) -> None:
    """Long before the heartbeat; where nothing was delivered there is no ping."""
    async with (
        running_server(**AT_ONCE) as server,
        connected(server) as client,
        connected(server) as quiet,
    ):
        await client.subscribe("stock:A")
        await publish_and_receive(server, client, 0, 3)
        mock_clock.jump(3)
        await take_turns(mock_clock, client)
        assert confirmed(server, client.session_id) == 0
        mock_clock.jump(2)
        await take_turns(mock_clock, client)
        await eventually(lambda: confirmed(server, client.session_id) == 3)
        assert first_session(server, client.session_id)._pings == 1
        assert first_session(server, quiet.session_id)._pings == 0


async def test_a_ping_waits_for_the_answer_to_the_last(mock_clock: MockClock) -> None:
    """A client that is slow to answer is not pinged again, which would void its answer."""
    async with (
        running_server(**AT_ONCE) as server,
        raw_client(server) as silent,
        connected(server) as other,
    ):
        await silent.send(type="subscribe", subscription_type="stock", targets=["A"])
        await eventually(lambda: server.statistics().subscriptions == 1)
        session = first_session(server)
        for number in range(3):
            for _ in range(250):
                publish(server, "stock:A:price", price("A", number))
            await take_turns(mock_clock, other)
            await eventually(lambda: session._pings)
        assert session._pings == 1


class Busy:
    """A session that always receives much."""

    def __init__(self, pings: list[str], name: str) -> None:
        self._pings = pings
        self._name = name
        self.outbox: Any = SimpleNamespace(subscriptions={})

    def is_confirmation_due(self, _now_seconds: float) -> bool:
        """Whether much has been delivered since the last ping."""
        return True

    def ping(self) -> None:
        """Note the ping."""
        self._pings.append(self._name)


def test_a_turn_is_bounded_and_nobody_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """If more clients are due than a turn has pings, the next turn continues after them."""
    pings: list[str] = []
    sessions: Any = {name: Busy(pings, name) for name in "abcde"}
    confirmations = confirmation.Confirmations(sessions)
    monkeypatch.setattr(confirmation, "_PINGS_PER_TURN", 2)
    for _ in range(5):
        confirmations._take_turn(0.0)
    assert "".join(pings) == "abcdeab"
    monkeypatch.setattr(confirmation, "_SESSIONS_PER_TURN", 1)
    pings.clear()
    for _ in range(3):
        confirmations._take_turn(0.0)
    assert "".join(pings) == "cde"
    monkeypatch.setattr(confirmation, "_SESSIONS_PER_TURN", 3)
    sessions["a"].outbox.subscriptions = dict.fromkeys(range(32))
    pings.clear()
    confirmations._take_turn(0.0)
    assert "".join(pings) == "a", "its topics are work, too"
