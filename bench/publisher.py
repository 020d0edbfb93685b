"""The cost of one publication: CPU of producer and Redis, and the highest rate.

    python bench/publisher.py [--messages 50000] [--redis URL]

165-byte price updates on 100 topics through a `Publisher`: one call of them all (pipelined), 100
tasks that publish one after another, and one task alone, which shows the round trip. The last row
is plain PUBLISH through redis-py in pipelines of 128, for comparison: no position, no history and
no recovery of losses. CPU is user and system time of all threads of the process.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from functools import partial

import redis
import trio

from streamer.publisher import Publisher, open_publisher
from tests.helpers.redis_server import RedisServer

TOPICS = 100
BLOCK = 128
Item = tuple[str, bytes]


def publications(count: int) -> list[Item]:
    """Price updates of one stock after another."""
    return [
        (
            f"stock:{number % TOPICS:06}:price",
            b'{"type":"price_update","stock_code":"%06d","price":72500.10,"change":-500,'
            b'"change_percent":-0.680,"volume":%d,"timestamp":"2024-08-09T00:00:00.000Z"}'
            % (number % TOPICS, number),
        )
        for number in range(count)
    ]


async def in_one_call(publisher: Publisher, items: list[Item]) -> None:
    """Publish all in one call, through the same pipeline."""
    await publisher.publish_many(items)


async def by_tasks(publisher: Publisher, items: list[Item], *, tasks: int) -> None:
    """Publish from several tasks, each of which waits for its receipt before the next."""

    async def produce(own: list[Item]) -> None:
        for channel, payload in own:
            await publisher.publish(channel, payload)

    async with trio.open_nursery() as nursery:
        for task in range(tasks):
            nursery.start_soon(produce, items[task::tasks])


def plain(url: str, items: list[Item]) -> None:
    """Use PUBLISH, as a program without this package would."""
    with redis.Redis.from_url(url) as client:
        for start in range(0, len(items), BLOCK):
            with client.pipeline(transaction=False) as pipeline:
                for channel, payload in items[start : start + BLOCK]:
                    pipeline.publish(channel, payload)
                pipeline.execute()


def run_publisher(url: str, items: list[Item], how: Callable[..., object]) -> None:
    """Run one way of publishing on a publisher of its own."""

    async def run() -> None:
        async with open_publisher(url) as publisher:
            await how(publisher, items)  # type: ignore[misc]

    trio.run(run)


def measure(url: str, name: str, items: list[Item], how: Callable[[str, list[Item]], None]) -> str:
    """One row of the table."""

    def redis_cpu_seconds() -> float:
        with redis.Redis.from_url(url) as client:
            info = client.info("cpu")
            return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    redis_began = redis_cpu_seconds()
    began, cpu_began = time.monotonic(), time.process_time()
    how(url, items)
    cpu, elapsed = time.process_time() - cpu_began, time.monotonic() - began
    redis_cpu = redis_cpu_seconds() - redis_began
    count = len(items)
    return (
        f"{name:<22} {count:>9} {count / elapsed:>10,.0f} {cpu / count * 1e6:>13.1f}"
        f" {redis_cpu / count * 1e6:>10.1f} {elapsed / count * 1e6:>8.1f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=50_000, help="default %(default)s")
    parser.add_argument("--redis", metavar="URL", help="without it, a server of its own")
    arguments = parser.parse_args()
    items = publications(arguments.messages)
    with contextlib.ExitStack() as stack:
        url = arguments.redis or stack.enter_context(RedisServer()).url
        print("                        messages  per second  publisher us   redis us  wall us")
        rows: list[tuple[str, list[Item], Callable[[str, list[Item]], None]]] = [
            ("one call", items, partial(run_publisher, how=in_one_call)),
            ("100 tasks", items, partial(run_publisher, how=partial(by_tasks, tasks=100))),
            ("1 task", items[::10], partial(run_publisher, how=partial(by_tasks, tasks=1))),
            ("plain PUBLISH, redis-py", items, plain),
        ]
        for name, some, how in rows:
            print(measure(url, name, some, how), flush=True)


if __name__ == "__main__":
    main()
