"""The statistics as Prometheus reads them, by its own parser.

Covers streamer.admin.http.
"""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from streamer.admin.metrics import FAMILIES, Family
from streamer.server import Server
from tests.helpers.clients import connected
from tests.helpers.publications import price
from tests.helpers.server import publish, running_server
from tests.helpers.timing import eventually

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, tuple[str, ...]], float]


async def get_metrics(server: Server, accept: str = "text/plain") -> tuple[str, str]:
    """Content type and text of the page."""
    async with httpx2.AsyncClient(base_url=server.http_url) as client:
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
