"""Signs of life, on a clock that moves only when a test says so."""

from __future__ import annotations

import os
import weakref
from contextlib import aclosing
from itertools import pairwise

import trio
import trio.testing
from trio.testing import MockClock
from wsproto.frame_protocol import Opcode

from streamer.edge.heartbeat import Heartbeat
from tests.helpers.clients import connected, raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

PONG = 0x8A


async def test_a_client_is_pinged_every_25_seconds_and_kept_while_it_answers(
    mock_clock: MockClock,
) -> None:
    """Six intervals, six pings, each answered; and so with a library's client."""
    async with (
        running_server() as server,
        raw_client(server) as client,
        connected(server) as library,
        aclosing(client.frames()) as frames,
    ):
        assert (await anext(frames))[0] is Opcode.TEXT
        mock_clock.jump(24)
        await library.ping_pong()
        mock_clock.jump(1)
        for _ in range(6):
            opcode, payload = await anext(frames)
            assert opcode is Opcode.PING
            await client.send_frame(PONG, bytes(payload))
            waiting = server.statistics().messages_received
            await library.ping_pong()
            assert server.statistics().messages_received == waiting + 1
            await eventually(lambda: all(c.idle_seconds == 0 for c in server.connections()))
            mock_clock.jump(10)  # judged here
            await library.ping_pong()
            mock_clock.jump(15)
        await library.ping_pong()
        assert server.statistics().active_connections == 2


async def test_a_silent_client_is_dropped_10_seconds_after_its_ping(
    mock_clock: MockClock,
) -> None:
    """Not before; without a close frame, which it would not read either."""
    async with (
        running_server() as server,
        connected(server) as library,
        raw_client(server) as client,
    ):
        await client.send(type="subscribe", subscription_type="stock", targets=["A"])
        await eventually(lambda: server.statistics().subscriptions == 1)
        mock_clock.jump(25)
        await library.ping_pong()
        mock_clock.jump(9.5)
        await library.ping_pong()
        assert server.statistics().active_connections == 2
        mock_clock.jump(0.5)
        await eventually(lambda: server.statistics().active_connections == 1)
        await library.ping_pong()
        assert server.statistics().subscriptions == 0


class Silent:
    """A session whose client answers nothing."""

    session_id = "s"
    is_ending = False

    def __init__(self, given_up: list[Silent]) -> None:
        self._given_up = given_up

    def ping(self) -> None:
        """Nobody answers it."""

    def is_silent_since(self, seconds: float) -> bool:
        """It always is."""
        return seconds > 0

    def give_up(self) -> None:
        """Note that it was cut."""
        self._given_up.append(self)


async def test_thousands_of_silent_clients_are_cut_in_turns(mock_clock: MockClock) -> None:
    """Other tasks run in between."""
    heartbeat = Heartbeat(interval_seconds=25, timeout_seconds=10)
    given_up: list[Silent] = []
    mock_clock.jump(1)
    for _ in range(3000):
        heartbeat.add(Silent(given_up))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(25)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10)
        most = 0
        while len(given_up) < 3000:
            before = len(given_up)
            await trio.lowlevel.checkpoint()
            most = max(most, len(given_up) - before)
        nursery.cancel_scope.cancel()
    assert most <= 2000


async def test_whatever_a_client_says_is_a_sign_of_life(mock_clock: MockClock) -> None:
    """It need not be a pong: half a frame will do."""
    async with running_server() as server, raw_client(server) as client:
        await eventually(lambda: server.statistics().active_connections == 1)
        mock_clock.jump(25)
        async with aclosing(client.frames()) as frames:
            assert (await anext(frames))[0] is Opcode.TEXT
            assert (await anext(frames))[0] is Opcode.PING
        mock_clock.jump(1)
        await client.stream.send_all(b"\x81")
        await eventually(lambda: server.connections()[0].idle_seconds == 0)
        mock_clock.jump(9)
        async with connected(server) as library:
            await library.ping_pong()
            assert server.statistics().active_connections == 2


async def test_an_answer_that_waits_to_be_read_is_a_sign_of_life() -> None:
    """The server is late then, not the client; once it is read, the time of reading counts."""
    async with running_server() as server, raw_client(server) as client:
        await eventually(lambda: server.statistics().active_connections == 1)
        (session,) = server._acceptor.sessions.values()
        later_seconds = trio.current_time() + 1000
        assert session.is_silent_since(later_seconds)
        os.write(client.stream.socket.fileno(), b"\x81")  # no turn of the loop until it is judged
        assert not session.is_silent_since(later_seconds)
        await eventually(lambda: session.is_silent_since(later_seconds))


async def test_a_heartbeat_overtakes_a_backlog(mock_clock: MockClock) -> None:
    """A client that is behind gets its ping before the data that waits for it, and can answer."""
    async with (
        running_server(flush_interval_ms=0) as server,
        raw_client(server, receive_buffer_bytes=4096) as client,
    ):
        await client.send(
            type="subscribe", subscription_type="stock", targets=["A"], mode="all", kinds=["price"]
        )
        await eventually(lambda: server.statistics().subscriptions == 1)
        published = 0
        while server.statistics().messages_queued < 200:
            done = server.statistics().batching.flushes
            publish(server, "stock:A:price", price("A", published, pad="x" * 2000))
            published += 1
            await eventually(lambda: server.statistics().batching.flushes > done)  # noqa: B023
        mock_clock.jump(25)
        await eventually(lambda: server.hub.statistics().blocked_clients == 1)
        received = 0
        before_ping = None
        async with aclosing(client.frames()) as frames:
            async for opcode, payload in frames:
                if opcode is Opcode.PING:
                    before_ping = received
                elif payload["type"] == "batch":
                    received += payload["batch_size"]
                elif payload["type"] == "price_update":
                    received += 1
                if received == published:
                    break
        assert before_ping is not None
        assert before_ping <= published - 200


class Quiet:
    """A session that answers each ping at once, and notes when it was pinged."""

    def __init__(self, name: str) -> None:
        self.session_id = name
        self.is_ending = False
        self.pinged_seconds: list[float] = []

    def ping(self) -> None:
        """Note the time."""
        self.pinged_seconds.append(trio.current_time())

    def is_silent_since(self, seconds: float) -> bool:
        """Return that it never is."""
        return seconds < 0

    def give_up(self) -> None:
        """It need not be."""
        raise AssertionError


async def test_each_client_is_pinged_in_time_however_many_others_come(
    autojump_clock: MockClock,
) -> None:
    """With one more client each second, 25 to 27 s pass between two pings of any of them."""
    heartbeat = Heartbeat(interval_seconds=25, timeout_seconds=10)
    sessions = [Quiet(str(number)) for number in range(100)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat.run)
        for session in sessions:
            heartbeat.add(session)
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    for session in sessions[:70]:
        assert session.pinged_seconds
        assert all(
            25 <= later - earlier <= 27 for earlier, later in pairwise(session.pinged_seconds)
        )


async def test_nothing_of_an_ended_session_stays(autojump_clock: MockClock) -> None:
    """It is in no queue any more, whether its answer was due or not."""
    heartbeat = Heartbeat(interval_seconds=25, timeout_seconds=10)
    session = Quiet("one")
    gone = weakref.ref(session)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat.run)
        heartbeat.add(session)
        await trio.sleep(26)
        assert session.pinged_seconds
        heartbeat.remove(session)
        del session
        assert gone() is None
        nursery.cancel_scope.cancel()
