"""max_bandwidth: the bytes at a client's socket, and what becomes of the messages."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from streamer.edge.session_ids import short_hash
from streamer.hub.bandwidth import Bandwidth
from streamer.protocol.messages import Mode
from streamer.server import Server
from tests.helpers.clients import Client, connected
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server

SECONDS = 20
RATE = 1000


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 10_000)), max_size=50),
    st.floats(1000, 1e6),
)
def test_the_average_never_exceeds_the_limit_by_more_than_one_write(
    writes: list[tuple[float, int]], bytes_per_second: float
) -> None:
    """However often data is offered, and whatever its size."""
    bandwidth = Bandwidth(bytes_per_second)
    now = 100.0
    sent: list[int] = []
    for pause, size in writes:
        now += pause
        if bandwidth.allows(now):
            assert sum(sent[:-1]) <= (now - 100.0) * bytes_per_second + 1
            bandwidth.spend(size)
            sent.append(size)


async def publish_for(server: Server, clock: MockClock, seconds: int, pad: str = "") -> None:
    """Publish ten times a second in virtual time."""
    for number in range(10 * seconds):
        publish(server, "stock:A:price", price("A", number)[:-1] + b',"pad":"%b"}' % pad.encode())
        clock.jump(0.1)
        await trio.testing.wait_all_tasks_blocked()


async def drain(client: Client, last: int) -> list[dict[str, object]]:
    """The messages up to the one of this price."""
    received = [await client.data()]
    while received[-1]["price"] != last:
        received.append(await client.data())
    return received


async def test_a_client_gets_no_more_bytes_than_it_asked_for(mock_clock: MockClock) -> None:
    """Its messages are merged, `previous` says so, and its neighbour gets them all."""
    async with (
        running_server() as server,
        connected(server) as limited,
        connected(server) as neighbour,
    ):
        await limited.subscribe("stock:A", max_bandwidth=RATE)
        await neighbour.subscribe("stock:A")
        await publish_for(server, mock_clock, SECONDS, "x" * 300)
        mock_clock.jump(5)
        received = await drain(limited, 10 * SECONDS - 1)
        assert len(await drain(neighbour, 10 * SECONDS - 1)) == 10 * SECONDS
        size = sum(len(str(message)) for message in received)
        assert RATE * SECONDS / 2 < size < RATE * (SECONDS + 10)
        assert any("previous" in message for message in received)
        by_name = {info.session: info.outbox for info in server.connections()}
        account = by_name[short_hash(limited.session_id)]
        assert account.conflated == 10 * SECONDS - len(received)


async def test_it_is_changed_and_asked_for_by_options(mock_clock: MockClock) -> None:
    """At any time; 0 is no limit, and what waited comes at once."""
    async with running_server() as server, connected(server) as client:
        assert (await client.request(type="options"))["max_bandwidth"] == 0
        answer = await client.request(type="options", max_bandwidth=RATE)
        assert (answer["type"], answer["max_bandwidth"]) == ("options", RATE)
        mock_clock.jump(10)
        await client.subscribe("stock:A", kinds=["price"])
        assert (await client.request(type="options"))["max_bandwidth"] == RATE
        publish(server, "stock:A:price", price("A", 1))
        publish(server, "stock:A:price", price("A", 2))
        await client.ping_pong()  # the answers have used up the bandwidth
        await client.send(type="options", max_bandwidth=0)
        assert (await client.data())["price"] == 1
        assert (await client.receive_type("options"))["max_bandwidth"] == 0
        mock_clock.jump(1)
        assert (await client.data())["price"] == 2


@pytest.mark.parametrize("value", [-1, 1, 999, 1e10, "1000", True])
async def test_a_bandwidth_out_of_range_is_refused(value: object) -> None:
    """In both messages; nothing changes."""
    async with running_server() as server, connected(server) as client:
        error = await client.request(type="options", max_bandwidth=value)
        assert (error["type"], error["code"]) == ("error", "INVALID_MESSAGE")
        error = await client.request(
            type="subscribe", subscription_type="stock", targets=["A"], max_bandwidth=value
        )
        assert error["code"] == "INVALID_MESSAGE"
        assert (await client.request(type="options"))["max_bandwidth"] == 0


async def test_in_mode_all_too_much_is_4008(mock_clock: MockClock) -> None:
    """As if its socket were slow."""
    async with running_server(max_outbound_bytes=5000) as server, connected(server) as client:
        await client.subscribe("stock:A", mode=Mode.ALL, max_bandwidth=RATE)
        await publish_for(server, mock_clock, 10, "x" * 1000)
        assert await client.closed() == 4008
