"""The statistics as Prometheus reads them, by its own parser.

Covers streamer.admin.http.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from trio.testing import MockClock

from streamer import __version__
from streamer.admin.metrics import FAMILIES, Family
from streamer.protocol.errors import ORIGIN
from streamer.server import Server
from tests.helpers.clients import connected, open_client
from tests.helpers.http import http_client
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, tuple[str, ...]], float]


async def get_metrics(server: Server, accept: str = "text/plain") -> tuple[str, str]:
    """Content type and text of the page."""
    async with http_client(base_url=server.http_url) as client:
        response = await client.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    return response.headers["content-type"], response.text


def samples(text: str) -> Samples:
    """Each sample, by its name and the values of its labels."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_metrics_are_the_statistics() -> None:
    """Counters end in _total, objects become labels, and what there is not is left out."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A")
        await client.subscribe("market:KOSPI")
        publish(server, "stock:A:price", price("A", 1))
        await client.data()
        publish(server, "stock:A:price", b"{")
        content_type, body = await get_metrics(server)
    assert content_type.startswith("text/plain; version=0.0.4")
    found = samples(body)
    assert found["streamer_connections", ()] == 1
    assert found["streamer_connections_opened_total", ()] == 1
    assert found["streamer_subscriptions", ("stock",)] == 1
    assert found["streamer_subscriptions", ("market",)] == 1
    assert found["streamer_subscriptions", ("sector",)] == 0
    assert found["streamer_messages_sent_total", ()] == 1
    assert found["streamer_publications_rejected_total", ()] == 1
    assert found["streamer_loop_longest_pause_seconds", ()] >= 0
    assert not [name for name, _ in found if name.startswith("streamer_redis")]


async def test_versions_and_the_process_are_in_the_metrics() -> None:
    """Labels have the versions; nothing names a user or a session."""
    async with running_server() as server:
        _content_type, body = await get_metrics(server)
    found = samples(body)
    versions = (platform.python_version(), __version__)
    assert found["streamer_build_info", versions] == 1
    assert found["process_cpu_seconds_total", ()] > 0
    assert found["process_resident_memory_bytes", ()] > 0


async def test_times_are_histograms(mock_clock: MockClock) -> None:
    """Each flush is one time in both histograms of flushes, each answered ping one of pings."""
    async with running_server() as server, connected(server) as client:
        await client.subscribe("stock:A")
        for number in range(3):
            publish(server, "stock:A:price", price("A", number))
            await client.data()
            mock_clock.jump(1)
        mock_clock.jump(30)  # beyond a heartbeat
        await eventually(
            lambda: server.statistics().ping_round_trips.buckets["+Inf"] == 1,
        )
        _content_type, body = await get_metrics(server)
    found = samples(body)
    flushes = found["streamer_flushes_total", ()]
    for name in ("streamer_flush_duration_seconds", "streamer_delivery_seconds"):
        assert found[f"{name}_bucket", ("+Inf",)] == found[f"{name}_count", ()] == flushes == 3
        assert found[f"{name}_bucket", ("0.5",)] == 3
        assert found[f"{name}_sum", ()] >= 0
    assert found["streamer_ping_round_trip_seconds_count", ()] == 1


async def test_ends_are_counted_by_their_code_and_recoveries_by_their_result() -> None:
    """A client that leaves, one that is refused, and topics that continue or have a hole."""
    origins = ("https://a.example",)
    async with running_server(allowed_origins=origins) as server:
        headers = [(b"origin", b"https://b.example")]
        async with open_client(server, headers=headers) as refused:
            assert await refused.closed() == ORIGIN.code
        async with connected(server) as client:
            position = (await client.subscribe("stock:A"))["positions"]["A"]
            await client.unsubscribe("stock:A")
            await client.subscribe("stock:A", since={"A": position})
            lost = {"epoch": "another", "sequence": 1}
            await client.subscribe("stock:B", since={"B": lost})
        await eventually(lambda: "client" in server.statistics().closes)
        _content_type, body = await get_metrics(server)
    found = samples(body)
    assert found["streamer_connections_closed_total", ("client",)] == 1
    assert found["streamer_connections_closed_total", (str(ORIGIN.code),)] == 1
    assert found["streamer_recoveries_total", ("complete",)] == 1
    assert found["streamer_recoveries_total", ("gap",)] == 1


async def test_who_comes_and_goes_is_logged_at_debug() -> None:
    """With the hash of the session, as everywhere in logs, and how it ended."""
    with capture_logs() as logs:
        async with running_server() as server:
            async with connected(server):
                (session,) = server.connections()
            await eventually(lambda: not server.active_connections)
    lines = [entry for entry in logs if entry.get("session") == session.session]
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("client connected", "debug"),
        ("client left", "debug"),
    ]
    assert lines[0]["address"] == "127.0.0.1"
    assert lines[1]["close"] == "client"


async def test_with_redis_there_is_every_metric(redis_url: str) -> None:
    """Its connection and its probe included, and OpenMetrics where it is asked for."""
    async with running_server(redis=redis_url) as server:
        await eventually(lambda: server.readiness().ready)
        content_type, body = await get_metrics(server, OPENMETRICS)
    assert content_type.startswith(OPENMETRICS)
    families = {family.name for family in parse_openmetrics(body)}  # type: ignore[no-untyped-call]
    unlabelled = {family.name for family in FAMILIES if family.label is None}
    assert unlabelled <= families


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_metric_is_described_to_operators(family: Family) -> None:
    """In docs/how-to/monitor.md, by the name under which Prometheus has it."""
    text = (Path(__file__).parents[2] / "docs/how-to/monitor.md").read_text()
    name = family.name + ("_total" if family.counts else "")
    assert f"`{name}`" in text or f"`{name}{{" in text
