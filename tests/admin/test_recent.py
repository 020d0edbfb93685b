"""The samples of the last 15 minutes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from streamer.admin.http import at_once
from streamer.admin.recent import INTERVAL_SECONDS, KEPT_SECONDS, Recent
from tests.helpers.http import http_client
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import running_server
from tests.helpers.timing import SLOW_POLL_SECONDS
from tests.helpers.workers import running_workers


def statistics(count: int, **others: Any) -> dict[str, Any]:
    """Figures of a server whose counters are all at one number."""
    return {
        "active_connections": 3,
        "messages_sent": count,
        "messages_conflated": 2 * count,
        "messages_dropped": {"slow": count, "gone": 2 * count},
        "messages_queued": 7,
        "hub": {"publications": 4 * count, "blocked_clients": 1},
        "batching": {"flushes": count, "seconds_total": count / 100, "window_seconds_last": 0.02},
        "loop": {"longest_pause_seconds_last_minute": 0.003},
        "redis": None,
        **others,
    }


@asynccontextmanager
async def sampled(*answers: Mapping[str, Any]) -> AsyncIterator[Recent]:
    """A ring that takes one of these answers each interval, and then the last one."""
    remaining = list(answers)
    next_answer = at_once(lambda: remaining.pop(0) if len(remaining) > 1 else remaining[0])
    recent = Recent(next_answer, clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recent.run)
        await trio.testing.wait_all_tasks_blocked()
        yield recent
        nursery.cancel_scope.cancel()


async def test_counters_become_rates(autojump_clock: trio.testing.MockClock) -> None:
    """A rate is over one interval; the first sample has none."""
    async with sampled(statistics(100), statistics(200)) as recent:
        await trio.sleep(INTERVAL_SECONDS * 1.5)
        first, second = recent.since(-1)
    assert first.sent_per_second is None
    assert first.connections == 3
    assert second.sent_per_second == pytest.approx(20)
    assert second.conflated_per_second == pytest.approx(40)
    assert second.dropped_per_second == pytest.approx(60)
    assert second.received_per_second == pytest.approx(80)
    assert second.flush_seconds == pytest.approx(0.01)
    assert second.flush_window_seconds == 0.02
    assert second.longest_pause_seconds_last_minute == 0.003
    assert second.blocked_clients == 1
    assert second.messages_queued == 7
    assert second.redis_round_trip_seconds is None


async def test_without_a_flush_there_is_no_time_of_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An idle server has rates of 0."""
    async with sampled(statistics(5)) as recent:
        await trio.sleep(INTERVAL_SECONDS * 1.5)
        sample = recent.since(-1)[-1]
    assert sample.flush_seconds is None
    assert sample.sent_per_second == 0


async def test_only_a_quarter_of_an_hour_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    """The oldest samples are dropped; newer ones than a time can be asked for."""
    start = trio.current_time()
    async with sampled(statistics(5)) as recent:
        await trio.sleep(2 * KEPT_SECONDS + 1)
        samples = recent.since(-1)
        assert len(samples) == KEPT_SECONDS / INTERVAL_SECONDS
        assert samples[0].at == pytest.approx(start + KEPT_SECONDS + INTERVAL_SECONDS)
        assert recent.since(samples[-3].at) == samples[-2:]


async def test_workers_that_do_not_answer_or_are_replaced_leave_a_hole(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The counts of the others alone would show a fall, and then a burst that never happened."""

    def of_workers(count: int, pids: tuple[int, ...], *, answers: bool = True) -> dict[str, Any]:
        workers: list[dict[str, Any]] = [
            {"pid": pid, "statistics": {} if answers else None} for pid in pids
        ]
        return statistics(count, workers=workers)

    async with sampled(
        {"workers": [{"pid": None, "statistics": None}]},
        of_workers(1000, (1, 2)),
        of_workers(1100, (1, 2)),
        of_workers(600, (1, 2), answers=False),
        of_workers(1300, (1, 2)),
        of_workers(1400, (1, 3)),
        of_workers(1500, (1, 3)),
    ) as recent:
        await trio.sleep(INTERVAL_SECONDS * 6.5)
        rates = [sample.sent_per_second for sample in recent.since(-1)]
    assert rates == [None, None, pytest.approx(20), None, None, None, pytest.approx(20)]


async def test_a_server_serves_its_samples() -> None:
    """The first is there at once; those already known need not be sent again."""
    async with (
        running_server() as server,
        http_client(base_url=server.http_url) as http,
    ):
        answer = (await http.get("/v1/ws/recent")).json()
        assert answer["interval_seconds"] == INTERVAL_SECONDS
        newest = answer["samples"][-1]["at"]
        later = (await http.get("/v1/ws/recent", params={"since": newest})).json()
        assert all(sample["at"] > newest for sample in later["samples"])
        wrong = await http.get("/v1/ws/recent", params={"since": "yesterday"})
        assert wrong.status_code == 400


async def test_the_parent_of_workers_samples_all_of_them(redis_server: RedisServer) -> None:
    """It shows the connections of both."""
    async with running_workers(redis_server.url) as workers:
        await workers.until_ready()
        samples: list[dict[str, Any]] = []
        async with workers.connected(), workers.connected():
            while not samples or samples[-1]["connections"] != 2:
                await trio.sleep(SLOW_POLL_SECONDS)
                samples = (await workers.page("/v1/ws/recent"))["samples"]
