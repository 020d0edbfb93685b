"""The cost of TLS: the load client under TLS, and the tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trustme

from bench.load import Load, Workload
from bench.measure import measure, price_topics, spread_subscriptions
from bench.rig import Cores
from bench.servers import streamer
from bench.tls import (
    CONNECTS,
    FLAGS,
    NO_CERTIFICATE,
    Rounds,
    behind_nginx,
    faults,
    ratio,
    resuming,
    table,
    variants,
    write_certificate,
)
from bench.tls_write_cost import measure as measure_writes
from tests.bench.figures import measurement

CLIENTS = 20
NAMED = {one.name: one for one in variants(NO_CERTIFICATE, NO_CERTIFICATE, Path())}
needs_openssl = pytest.mark.skipif(
    shutil.which("cc") is None
    or not Path("/usr/include/zlib.h").exists()
    or not Path("/usr/include/openssl/ssl.h").exists(),
    reason="the load client is built with a C compiler, zlib and OpenSSL (Debian's gcc, "
    "zlib1g-dev and libssl-dev)",
)


def workload(*, in_flight: int = 100) -> Workload:
    """Return a small load: 20 clients, two topics each."""
    load = Load(200, 0.5, settle_seconds=0, warmup_seconds=0.1, sample=5, in_flight=in_flight)
    return Workload(load, price_topics(4), spread_subscriptions(CLIENTS, 4, 2))


@needs_openssl
@pytest.mark.parametrize("resumes", [False, True])
def test_the_load_client_receives_everything_under_tls(tmp_path: Path, resumes: bool) -> None:
    """Each client has its own session, or all but the first resume one."""
    start = streamer(*FLAGS, *write_certificate(tmp_path, trustme.KeyType.ECDSA).flags())
    found = measure(resuming(start) if resumes else start, workload(in_flight=1), Cores.available())
    assert found.detail["messages"] == found.detail["expected"] > 0
    assert (found.lost, found.undelivered, found.violations) == (0, 0, 0)
    assert found.detail["tls_resumed"] == (CLIENTS - 1 if resumes else 0)


@needs_openssl
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_ends_tls_and_its_memory_and_cpu_are_included(tmp_path: Path) -> None:
    """More than a streamer without nginx takes for as many clients."""
    start = behind_nginx(write_certificate(tmp_path, trustme.KeyType.RSA))
    found = measure(start, workload(), Cores.available())
    assert found.detail["messages"] == found.detail["expected"] > 0
    assert (found.lost, found.undelivered, found.violations) == (0, 0, 0)


def test_the_ways_to_write_under_tls_all_work() -> None:
    """Each writes a frame to each client, and its cost is counted."""
    costs = measure_writes(clients=2, size=224, rounds=2)
    assert list(costs) == [
        "without TLS",
        "TLS, OpenSSL writes",
        "TLS, through memory",
        "encryption alone",
    ]
    assert all(cost > 0 for cost in costs.values())


def test_a_ratio_is_the_median_of_the_rounds_that_have_both() -> None:
    """A round without one of the two counts no more than one without any."""
    plain = [measurement(p99_ms=one) for one in (10, 20, 40, 0)]
    secured = [measurement(p99_ms=one) for one in (20, 20, 120, 1)]
    assert ratio(lambda one: one.p99_ms, secured, plain) == 2
    assert ratio(lambda one: one.p99_ms, [None, *secured[1:]], plain) == 2
    assert ratio(lambda one: one.p99_ms, [None] * 4, plain) is None


def test_a_table_has_medians_and_ratios_to_the_same_server_without_tls() -> None:
    """A server that polls has no CPU time, and one without measurements no row."""
    found: Rounds = {
        ("many-topics", "streamer"): [measurement(server_cpu_us_per_delivery=4.0)] * 2,
        ("many-topics", "streamer-tls"): [
            measurement(server_cpu_us_per_delivery=8.0, p99_ms=1.0),
            measurement(server_cpu_us_per_delivery=12.0, p99_ms=2.0),
        ],
        ("many-topics", "uwebsockets"): [measurement(p99_ms=0.5), None],
    }
    servers = [NAMED[name] for name in ("streamer", "streamer-tls", "uwebsockets", "node-ws")]
    assert table("many-topics", found, servers).splitlines()[2:] == [
        "| streamer | 4.00 | - | 0.0 | 0 | 0.00 |",
        "| streamer-tls | 10.00 | 2.50 | 1.5 | 0 | 0.00 |",
        "| uwebsockets | - | - | 0.5 | 0 | 0.00 |",
    ]
    connects: Rounds = {(CONNECTS, "streamer"): [measurement(server_cpu_us_per_connect=900.0)]}
    assert table(CONNECTS, connects, servers).splitlines()[2:] == [
        "| streamer | 900 | - | 0 | 0.0 |"
    ]


def test_only_losses_of_streamer_are_faults() -> None:
    """A peer may merge or drop as it likes."""
    found: Rounds = {
        ("many-topics", "streamer-tls"): [None, measurement(lost=2), measurement()],
        ("many-topics", "node-ws"): [measurement(lost=7)],
    }
    assert faults(found) == ["many-topics streamer-tls: 2 updates lost, 0 violations"]


def test_every_server_with_tls_is_divided_by_one_without() -> None:
    """Under the name that it is chosen by."""
    for one in NAMED.values():
        assert one.plain in {"", *NAMED}
        assert bool(one.plain) == any(word in one.name for word in ("tls", "nginx"))
