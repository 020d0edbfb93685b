"""The writer task of a client whose socket is full, or that is sent a long replay."""

from __future__ import annotations

import socket

import trio
from trio.testing import wait_all_tasks_blocked

from streamer.edge.loop_budget import LoopBudget
from streamer.edge.writer import BlockedWriter
from streamer.hub.outbox import NO_OWNER, REPLAYED_PER_TURN, Outbox
from streamer.hub.recovery import subscribe
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.protocol.messages import Mode, Position
from streamer.wire.json import WebSocketJson
from tests.helpers.timing import DEADLINE_SECONDS
from tests.hub.test_history import STOCK, House


async def test_a_long_replay_waits_for_turns_that_are_not_long() -> None:
    """Hundreds of clients that come back together would make each turn long otherwise."""
    house = House(history_length=3 * REPLAYED_PER_TURN)
    house.publish(STOCK, 3 * REPLAYED_PER_TURN, size=40)
    loop_budget = LoopBudget(lambda: 1.0)
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        stream = trio.SocketStream(ours)
        wire = WebSocketJson(lambda: "")
        outbox = Outbox("reads", ours.fileno(), NO_OWNER, wire, max_queued_bytes=1 << 20)
        house.hub.add(outbox)
        since = Position(house.hub.stream(STOCK).epoch, 0)
        want = Want(STOCK, SubscriptionOptions(Mode.ALL), since)
        subscribe(house.hub, outbox, [want], max_replay_bytes=1 << 20)
        house.hub.fanout.start_replays(outbox)
        assert outbox.blocked
        waiting_bytes = outbox.backlog.replay_bytes
        writer = BlockedWriter(stream, house.hub.fanout, outbox, loop_budget)
        with trio.fail_after(DEADLINE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.write_blocked)
                await wait_all_tasks_blocked()
                assert outbox.backlog.replay_bytes == waiting_bytes > 0
                nursery.start_soon(loop_budget.run)
                await writer.wait_written()
                nursery.cancel_scope.cancel()
        assert not outbox.backlog.replaying
