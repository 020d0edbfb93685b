"""The cost of a publication from a thread: `python -m bench.sync_publisher`.

Publishes the same price with redis-py's `publish` and with `streamer.publisher.sync`, in turn, to a
Redis of its own, and prints medians for each: microseconds of wall time and of CPU time of the
producer's process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import redis

from streamer.publisher.sync import open_publisher
from tests.helpers.publications import price
from tests.helpers.redis_server import RedisServer


def measure(publish: Callable[[], object], count: int) -> tuple[float, float]:
    """Return microseconds of wall time and of CPU time for each call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        publish()
    return (
        (time.perf_counter() - wall) / count * 1e6,
        (time.process_time() - cpu) / count * 1e6,
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.sync_publisher", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5000, help="publications in a round")
    options = parser.parse_args()
    channel, text = "stock:A:price", price("A", 72_500.1)
    with (
        RedisServer() as server,
        redis.Redis.from_url(server.url) as client,
        open_publisher(server.url) as positioned,
        open_publisher(server.url, positioned=False) as plain,
    ):
        ways: dict[str, Callable[[], object]] = {
            "redis-py publish": lambda: client.publish(channel, text),
            "streamer.publisher.sync": lambda: positioned.publish(channel, text),
            "the same, positioned=False": lambda: plain.publish(channel, text),
        }
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                rounds[name].append(measure(way, options.count))
    base = median(cpu for _, cpu in rounds["redis-py publish"])
    print(f"{'':28} {'wall us':>8} {'CPU us':>8} {'ratio':>6}")
    for name, figures in rounds.items():
        cpu = median(cpu for _, cpu in figures)
        print(f"{name:28} {median(wall for wall, _ in figures):8.0f} {cpu:8.0f} {cpu / base:6.2f}")


if __name__ == "__main__":
    main()
