"""The harness of very many clients: it finds what they lose, and brings all of them back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import redis as redis_py
from click.testing import CliRunner

from bench import scale_run
from bench.crowd import Histogram, Mix, added, bucket_end, subscriptions
from bench.rig import Core
from bench.scale import scale
from bench.scale_rig import Plan, running_publisher
from streamer.broker.keys import history_key

MIX = [Mix(1, 0.8), Mix(10, 0.2)]

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="the load client is built with a C compiler"
)


def test_clients_have_as_many_topics_as_the_mix_says() -> None:
    """The same in each run; topics are distinct and sorted."""
    wanted = subscriptions(1000, 50, MIX)
    assert sorted(map(len, wanted)) == [1] * 800 + [10] * 200
    assert all(one == sorted(set(one)) and max(one) < 50 for one in wanted)
    assert wanted == subscriptions(1000, 50, MIX)
    assert len({topic for one in wanted for topic in one}) == 50


def test_a_percentile_is_the_end_of_its_bucket() -> None:
    """As the load client's: 64 buckets for each power of two."""
    assert [bucket_end(bucket) for bucket in (0, 127, 128, 129)] == [0, 127, 129, 131]
    latency = Histogram({1000: 98, 1100: 2})
    assert latency.percentile_ms(0.98) == bucket_end(1000) / 1e6
    assert latency.percentile_ms(0.99) == bucket_end(1100) / 1e6
    assert Histogram({}).percentile_ms(0.5) == 0


def test_the_counts_of_all_processes_are_added() -> None:
    """Histograms too, and faults are named."""
    answers = [
        {"live": 3, "lost": 1, "latency_ms": {"count": 2, "buckets": [[5, 1], [7, 1]]}},
        {"live": 4, "lost": 0, "latency_ms": {"count": 1, "buckets": [[7, 1]]}},
    ]
    status = added(answers)
    assert status["live"] == 7
    assert status.faults == {"lost": 1}
    assert status.latency.buckets == {5: 1, 7: 2}


@needs_compiler
def test_all_clients_come_back_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clients, two workers: a whole run, and its figures."""
    for name in ("SETTLE_SECONDS", "WARM_UP_SECONDS"):
        monkeypatch.setattr(scale_run, name, 0.1)
    path = tmp_path / "figures.json"
    flags = ["--clients", "60", "--topics", "20", "--rate", "200", "--seconds", "1"]
    flags += ["--mix", "1:0.8", "--mix", "10:0.2", "--json", str(path)]
    result = CliRunner().invoke(scale, flags)
    assert result.exit_code == 0, result.output
    assert "| faults | none |" in result.output
    figures = json.loads(path.read_text())
    assert figures["last"]["counts"]["returned"] == 60
    assert figures["last"]["counts"]["replayed"] > 0
    assert figures["missing"] == 0
    assert figures["received"]["updates_per_second"] > 0


def test_the_publisher_keeps_histories_for_as_long_as_clients_may_be_away(
    redis: redis_py.Redis, redis_url: str
) -> None:
    """A new server replays what Redis has, however long it keeps histories itself."""
    plan = Plan(1, 1, 1, 1.0, MIX, 1.0, 0.0, 1, 1.0, absence_seconds=5000, niceness=0)
    with running_publisher(plan, redis_url, Core(0, 0, pinned=False)):
        assert redis.ttl(history_key("stock:T00000")) > 4000


def test_a_mix_that_cannot_be_read_is_refused() -> None:
    """It is named."""
    result = CliRunner().invoke(scale, ["--mix", "many"])
    assert result.exit_code == 2
    assert "--mix" in result.output
