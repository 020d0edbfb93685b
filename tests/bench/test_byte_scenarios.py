"""The loads in which bytes are compared, and the load client that counts them."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from bench.byte_scenarios import byte_scenarios
from bench.check import SCRIPTS, WIRES, check_wire
from bench.feeds import market_workload
from bench.load import Load
from bench.rig import Cores, running_redis
from bench.servers import SERVERS, subscribe_events, subscribe_streamer
from streamer.protocol.topics import Kind

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or not Path("/usr/include/zlib.h").exists(),
    reason="the load client is built with a C compiler and zlib (Debian's gcc and zlib1g-dev)",
)


@pytest.mark.parametrize("kind", [Kind.PRICE, Kind.ORDERBOOK])
def test_publications_move_and_come_at_a_steady_rate(kind: Kind) -> None:
    """A message is never that of before, or its compression would say nothing."""
    load = Load(rate_per_second=100, seconds=2, warmup_seconds=0.5)
    workload = market_workload(kind, load, [[0, 1], [1, 2]])
    assert [topic.channel for topic in workload.topics] == [
        f"stock:T{number:05}:{kind}" for number in range(3)
    ]
    assert [one.at_ns for one in workload.schedule] == [10_000_000 * n for n in range(250)]
    assert {one.topic for one in workload.schedule} == {0, 1, 2}
    for one in workload.schedule:
        assert json.loads(one.head + "}")["stock_code"] == f"T{one.topic:05}"
    assert all(former.head != latter.head for former, latter in pairwise(workload.schedule))


def test_the_scenarios_name_servers_that_there_are() -> None:
    """Streamer without compression is among them: the others are divided by it."""
    for scenario in byte_scenarios(1):
        assert set(scenario.servers) <= set(SERVERS)
        assert scenario.servers[0] == "streamer"


def test_clients_ask_for_what_their_server_is_measured_with() -> None:
    """Deltas in the message, and the topics of events in the path."""
    channels = ["stock:A:price", "stock:B:price"]
    path, (request,) = subscribe_streamer(channels, delta=True)
    asked = json.loads(request)
    assert (path, asked["targets"], asked["delta"]) == ("/v1/ws", ["A", "B"], True)
    assert subscribe_events(channels) == ("/v1/stream?topics=stock:A,stock:B&kinds=price", ())


@needs_compiler
@pytest.mark.parametrize("wire", WIRES)
async def test_the_load_client_reads_what_is_compressed_and_events(
    wire: str, tmp_path: Path
) -> None:
    """It finds what was lost, and counts the messages of connections that it does not inflate."""
    (script,) = [script for script in SCRIPTS if script.name == "two lost"]
    with running_redis(tmp_path, Cores.available().client) as (redis_port, _):
        assert await check_wire(wire, WIRES[wire], script, redis_port) == []
