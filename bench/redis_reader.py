"""The cost of one publication to the Redis reader: CPU per message at a given rate.

    python bench/redis_reader.py [--rates 1000 10000 100000 0] [--seconds 5] [--redis URL]

A process of its own publishes 165-byte payloads on 100 channels, in bursts every 10 ms (rate 0: as
fast as Redis accepts them). The reader's handler only counts. CPU is user and system time of all
threads of the reader's process.
"""

import argparse
import contextlib
import multiprocessing
import socket
import time
from urllib.parse import urlsplit

import trio

from streamer.broker.pubsub import Message
from streamer.broker.reader import ServerReader
from tests.helpers.redis_server import RedisServer

PAYLOAD = b"x" * 165
CHANNELS = [f"stock:{number:06}:price" for number in range(100)]
BURST_SECONDS = 0.01
BURST_MESSAGES_UNPACED = 1000


def publish(url: str, rate: int, messages: int) -> None:
    """Publish `messages` at `rate` per second (0: unpaced), until Redis has accepted all."""
    burst = int(rate * BURST_SECONDS) or BURST_MESSAGES_UNPACED
    commands = [
        b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n"
        % (len(channel), channel.encode(), len(PAYLOAD), PAYLOAD)
        for channel in CHANNELS
    ]
    address = urlsplit(url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 6379)) as sock:
        began = time.monotonic()
        for first in range(0, messages, burst):
            count = min(burst, messages - first)
            sock.sendall(
                b"".join(commands[number % len(commands)] for number in range(first, first + count))
            )
            answers = 0
            while answers < count:
                answers += sock.recv(65536).count(b"\n")
            if rate:
                time.sleep(max(0.0, began + (first + count) / rate - time.monotonic()))


class Count:
    """A handler that counts messages, and sets an event when it has all."""

    def __init__(self, messages: int) -> None:
        self.missing = messages
        self.complete = trio.Event()

    def on_messages(self, messages: list[Message]) -> None:
        """Count the messages."""
        self.missing -= len(messages)
        if not self.missing:
            self.complete.set()

    def on_connected(self) -> None:
        """Nothing to do."""

    def on_lost(self, reason: str) -> None:
        """Fail: messages were lost."""
        raise RuntimeError(reason)

    def on_refused(self, channel: bytes, reason: str) -> None:
        """Fail: a channel may not be read."""
        raise RuntimeError(f"{channel!r}: {reason}")

    def on_accepted(self, channel: bytes) -> None:
        """Nothing to do."""


async def measure(url: str, rate: int, seconds: float) -> str:
    """One row of the table."""
    messages = int((rate or 200_000) * seconds)
    listener = Count(messages)
    source = ServerReader(url, listener)
    source.subscribe(CHANNELS)
    async with trio.open_nursery() as nursery:
        if not await nursery.start(source.run):
            raise SystemExit(f"no Redis at {url}: {source.last_error}")
        publisher = multiprocessing.get_context("spawn").Process(
            target=publish, args=(url, rate, messages)
        )
        publisher.start()
        before = source.statistics()
        began, cpu_began = time.monotonic(), time.process_time()
        await listener.complete.wait()
        cpu, elapsed = time.process_time() - cpu_began, time.monotonic() - began
        bytes_received = source.statistics().bytes_received - before.bytes_received
        nursery.cancel_scope.cancel()
    publisher.join()
    return (
        f"{rate or 'max':>9} {messages:>9} {messages / elapsed:>12,.0f}"
        f" {cpu / messages * 1e6:>14.2f} {cpu / elapsed:>9.0%}"
        f" {bytes_received / elapsed / 1e6:>8.1f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[1_000, 10_000, 100_000, 0], metavar="PER_SECOND"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long each rate lasts (default %(default)s)"
    )
    parser.add_argument(
        "--redis", metavar="URL", help="a redis:// URL; without it, a server of its own"
    )
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        # Unpaced, Redis accepts more than the reader can read on two cores, and would disconnect it
        # once 32 MB wait for it. Without a limit the figure is that of the reader.
        options = {"client_output_buffer_limit": "pubsub 0 0 0"}
        url = arguments.redis or stack.enter_context(RedisServer(**options)).url
        print(" offered/s  messages   received/s  CPU us/message  CPU used     MB/s")
        for rate in arguments.rates:
            print(trio.run(measure, url, rate, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
