"""Every kind of Redis, for what must hold on all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.redis_topology import ClusterService


@pytest.fixture(scope="session")
def calm_cluster() -> Iterator[ClusterService]:
    """A Cluster that no test breaks."""
    with ClusterService(calm=True) as service:
        yield service


@pytest.fixture(params=["server", "cluster"])
def any_redis_url(request: pytest.FixtureRequest) -> str:
    """A Redis server, and a Redis Cluster, both empty when the test begins."""
    if request.param == "server":
        return str(request.getfixturevalue("redis_url"))
    service: ClusterService = request.getfixturevalue("calm_cluster")
    for master in service.masters:
        with master.connect() as client:
            client.flushall()
    return service.url
