"""Handshakes under way while a server stops, in any number, of any kind and at any point.

Hypothesis says how much of each request has arrived when the shutdown begins, and when the rest
comes: before the clients are dismissed, after that, or never. The truth that they are held to is
the protocol's: whoever finishes a handshake in time is served to an orderly end, a session is not
restored, and nobody makes the server wait for more than a second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from enum import Enum
from typing import Any, Final

import attrs
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from streamer.config import Settings
from streamer.server import Server, serve
from tests.helpers.clients import RawClient, connected, raw_client
from tests.helpers.publications import price
from tests.helpers.server import publish
from tests.helpers.timing import eventually, real_deadline

EXAMPLES: Final = 15
_FLUSH_SECONDS: Final = 0.03
_LATE_HANDSHAKE_SECONDS: Final = 1.0
"""How long a handshake may take once the server stops accepting."""


class Kind(Enum):
    """The requests of clients."""

    WEBSOCKET = "/v1/ws"
    RESTORE = "/v1/ws?session_id={session_id}"
    STREAM = "/v1/stream?topics=stock:A"
    SNAPSHOT = "/v1/snapshot?topics=stock:A"


class Rest(Enum):
    """When the rest of a request comes."""

    BEFORE_DISMISSAL = "while the server flushes what was published"
    AFTER_DISMISSAL = "after the other clients were dismissed"
    NEVER = "never"


@attrs.frozen
class Plan:
    """One client: its request, the share of it that has come before, and when the rest does."""

    kind: Kind
    share: float
    rest: Rest

    def request(self, session_id: str) -> tuple[bytes, bytes]:
        """Return the bytes before the shutdown, and the rest."""
        path = self.kind.value.format(session_id=session_id)
        upgrade = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        headers = upgrade if path.startswith("/v1/ws") else "Connection: close\r\n"
        text = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()
        cut = int(self.share * len(text))
        return text[:cut], text[cut:]


PLANS = st.builds(
    Plan, st.sampled_from(Kind), st.sampled_from([0.0, 0.1, 0.5, 0.99]), st.sampled_from(Rest)
)


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(plans=st.lists(PLANS, min_size=1, max_size=6))
def test_late_handshakes_end_in_order_and_delay_nothing(plans: list[Plan]) -> None:
    """Each is served to its end, or cut; the shutdown takes no longer than they may."""
    clock = MockClock()
    trio.run(play, plans, clock, clock=clock)


async def play(plans: Sequence[Plan], clock: MockClock) -> None:
    """Stop a server while these handshakes are under way."""
    async with real_deadline(), trio.open_nursery() as nursery, AsyncExitStack() as stack:
        stopped = trio.Event()

        async def run(task_status: trio.TaskStatus[Server]) -> None:
            configured = Settings(memory=True, port=0, http_port=0, max_connections_per_address=0)
            await serve(configured, task_status=task_status)
            stopped.set()

        server = await nursery.start(run)
        other = await stack.enter_async_context(connected(server))
        await other.subscribe("stock:A")
        publish(server, "stock:A:price", price("A", 1))
        await other.data()
        publish(server, "stock:A:price", price("A", 2))  # waits for the end of the interval
        clients: list[tuple[Plan, RawClient, bytes]] = []
        for plan in plans:
            client = await stack.enter_async_context(raw_client(server, opened=False))
            head, rest = plan.request(other.session_id)
            await client.stream.send_all(head)
            clients.append((plan, client, rest))
        await eventually(lambda: server.statistics().pending_handshakes == len(plans))

        began_seconds = trio.current_time()
        server.shutdown()
        await eventually(lambda: server._acceptor._is_stopping)
        await _finish(clients, Rest.BEFORE_DISMISSAL)
        clock.jump(_FLUSH_SECONDS)
        assert await other.closed() == 1001
        await _finish(clients, Rest.AFTER_DISMISSAL)
        clock.jump(_LATE_HANDSHAKE_SECONDS - _FLUSH_SECONDS)
        for plan, client, _ in clients:
            if plan.rest is Rest.NEVER:
                assert await client.rest() == b""
        await eventually(stopped.is_set)
        assert trio.current_time() - began_seconds <= _LATE_HANDSHAKE_SECONDS


async def _finish(clients: Sequence[tuple[Plan, RawClient, bytes]], when: Rest) -> None:
    """Send the rest of the requests that is due, and check what comes of it."""
    due = [client for client in clients if client[0].rest is when]
    for _, client, rest in due:
        await client.stream.send_all(rest)
    for plan, client, _ in due:
        await _check(plan, client)
        await client.stream.aclose()


async def _check(plan: Plan, client: RawClient) -> None:
    head = await client.response()
    match plan.kind:
        case Kind.WEBSOCKET | Kind.RESTORE:
            assert head.startswith(b"HTTP/1.1 101 ")
            messages, code = await client.messages_until_close()
            assert [message["type"] for message in messages] == ["connected", "server_shutdown"]
            assert code == 1001
        case Kind.STREAM:
            assert head.startswith(b"HTTP/1.1 200 ")
            events = [
                json.loads(line.removeprefix(b"data: "))
                for line in (await client.rest()).split(b"\n")
                if line.startswith(b"data: ")
            ]
            assert [event["type"] for event in events[-2:]] == ["server_shutdown", "closed"]
            assert events[-1]["code"] == 1001
        case Kind.SNAPSHOT:
            assert head.startswith(b"HTTP/1.1 200 ")
            body: dict[str, Any] = json.loads(await client.rest())
            assert body.keys() == {"stock:A"}
