"""The client's tokens: renewed when the server announces their end; alerts without subscribing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis as redis_py
import trio
from trio.testing import MockClock

from streamer.backoff import Backoff
from streamer.client import Alert, Client, ConnectError, Error, open_client
from streamer.client.tokens import TokenSource
from streamer.server import Server
from tests.helpers.identities import identifying_server, token
from tests.helpers.timing import eventually

ALERTS = "alerts:ann"


def at_once() -> Backoff:
    """A backoff that does not wait."""
    return Backoff(first_seconds=0.001, max_seconds=0.001)


def alert(number: int) -> bytes:
    """An alert to the user, as a producer writes it."""
    return b'{"alert_id":%d,"stock_code":"A","alert_type":"above","message":"m"}' % number


async def alerts(client: Client, count: int) -> list[int | str]:
    """The numbers of the next messages, which are alerts."""
    numbers = []
    for _ in range(count):
        message = await client.receive()
        assert isinstance(message, Alert), message
        numbers.append(message.alert_id)
    return numbers


def cut(server: Server) -> None:
    """Cut all connections without a close frame."""
    for session in list(server._acceptor.sessions.values()):
        session.give_up()


async def test_callers_at_the_same_time_share_one_token() -> None:
    """A refresh token that is used twice at a time is revoked by many providers."""
    calls = 0

    async def new() -> str:
        nonlocal calls
        calls += 1
        await trio.lowlevel.checkpoint()
        return f"t{calls}"

    source = TokenSource(new)
    received: list[str | None] = []

    async def get() -> None:
        received.append(await source.get())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(get)
    assert received == ["t1", "t1", "t1"]
    assert await source.get() == "t2"
    assert await TokenSource(lambda: "plain").get() == "plain"
    assert (await TokenSource("fixed").get(), await TokenSource(None).get()) == ("fixed", None)


async def test_a_function_that_fails_for_a_while_is_called_again(tmp_path: Path) -> None:
    """An identity provider that is away does not end a client that had a token before."""
    outcomes: list[str | Exception] = [token(), OSError("no route"), OSError("no route"), token()]

    def get() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with identifying_server(tmp_path) as server:
        assert server.bus is not None
        async with open_client(server.websocket_url, token=get, backoff=at_once()) as client:
            cut(server)
            await eventually(lambda: client.statistics().connections == 2)
            assert outcomes == []
            server.bus.publish(ALERTS, alert(1))
            assert await alerts(client, 1) == [1]
        outcomes.append(OSError("no route"))
        with pytest.raises(ConnectError, match="no token: OSError"):
            async with open_client(server.websocket_url, token=get):
                pass


@pytest.mark.parametrize("wrong", ["", "a b", "secret\n", "geheimnis\u00e9"])
async def test_what_no_header_can_carry_is_no_token(tmp_path: Path, wrong: str) -> None:
    """As of a file that is being written: a connected client tries again; no error shows it."""
    outcomes = [token(), wrong, token()]
    async with identifying_server(tmp_path) as server:
        assert server.bus is not None
        async with open_client(
            server.websocket_url, token=lambda: outcomes.pop(0), backoff=at_once()
        ) as client:
            cut(server)
            await eventually(lambda: client.statistics().connections == 2)
            server.bus.publish(ALERTS, alert(1))
            assert await alerts(client, 1) == [1]
        for given, expected in ((wrong, ValueError), (lambda: wrong, ConnectError)):
            with pytest.raises(expected, match="the token is empty, or has") as caught:
                async with open_client(server.websocket_url, token=given):
                    pass
            assert wrong.strip() == "" or wrong.strip() not in str(caught.value)


@pytest.mark.parametrize("wanted", [[], ["stock:A"]])
async def test_an_alert_while_away_arrives_once(tmp_path: Path, wanted: list[str]) -> None:
    """Without a subscription to it, and beside others; the stream is proven across the cut."""
    async with identifying_server(tmp_path) as server:
        assert server.bus is not None
        async with open_client(server.websocket_url, token=token(), backoff=at_once()) as client:
            if wanted:
                await client.subscribe(wanted)
            server.bus.publish(ALERTS, alert(1))
            assert await alerts(client, 1) == [1]
            for round_number in range(2, 5):
                cut(server)
                await eventually(lambda: not server._acceptor.sessions)
                server.bus.publish(ALERTS, alert(round_number))
                assert await alerts(client, 1) == [round_number]
            server.bus.publish(ALERTS, alert(9))
            assert await alerts(client, 1) == [9]
            assert client.account().violations == 0
            assert client.account().gaps == {}


async def test_two_devices_have_each_alert_once(
    tmp_path: Path, redis_url: str, redis: redis_py.Redis
) -> None:
    """Their connections are cut while alerts come; both have all of them, in order."""
    async with (
        identifying_server(tmp_path, redis=redis_url) as server,
        open_client(server.websocket_url, token=token(), backoff=at_once()) as first,
        open_client(server.websocket_url, token=token, backoff=at_once()) as second,
    ):
        for number in range(10):
            redis.publish(ALERTS, alert(number))
            if number == 5:
                cut(server)
        for client in (first, second):
            assert await alerts(client, 10) == list(range(10))
            assert client.account().violations == 0


async def test_a_new_token_is_presented_when_the_old_one_ends(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """The connection lasts, and what the new token does not permit is reported."""
    tokens = iter([token(topics=["watchlist:x"]), token(exp=int(time.time()) + 9000)])
    async with (
        identifying_server(tmp_path, heartbeat_interval_seconds=10_000) as server,
        open_client(server.websocket_url, token=lambda: next(tokens)) as client,
    ):
        await client.subscribe(["watchlist:x", "stock:A"])
        mock_clock.jump(3599)
        event = await client.receive()
        assert isinstance(event, Error)
        assert event.code == "FORBIDDEN"
        assert "watchlist:x" in event.message
        mock_clock.jump(60)
        await client.subscribe(["stock:B"])
        assert client.statistics().connections == 1
        assert client.statistics().subscriptions == 2
