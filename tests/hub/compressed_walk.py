"""A long random walk of compressed clients: `python -m tests.hub.compressed_walk --minutes 10`.

Clients come, stall with a full socket, read on, change what they hold, leave and are restored,
while publications go to all of them, whole or as deltas. Each inflates what it receives with a
window of its own, and every byte is checked (`tests.hub.world`). It prints how often each thing has
happened.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from typing import Final

from streamer.hub.renditions import WHOLE, Detail
from streamer.protocol.messages import Mode
from streamer.protocol.topics import Kind
from streamer.wire.deflate import Compression, CompressionStatistics, Window
from tests.hub.world import POSITIONED, TIMESTAMP, TOPICS, WIRE, Options, World

MAX_CLIENTS: Final = 8
STEPS: Final = 400
"""Steps before everybody reads to the end, and a new world begins."""
_KINDS: Final = frozenset(Kind)
_DETAILS: Final = (WHOLE, Detail(delta=True), Detail(delta=True, depth=3))
_SIZES: Final = (0, 100, 100, 1500, 6000)
_WEIGHTS: Final = {
    "publish": 30,
    "flush": 30,
    "read": 30,
    "flush_step": 20,
    "connect": 6,
    "subscribe": 3,
    "unsubscribe": 2,
    "restore": 2,
    "leave": 3,
    "outage": 1,
    "load": 4,
    "settle": 1,
}


class Walk:
    """One world, and the random steps through it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.is_behind = self.is_busy = False
        choice = self.random.choice
        self.compression = Compression(
            lambda: TIMESTAMP,
            level=choice([1, 6, 9]),
            min_message_bytes=64,
            min_members=choice([1, 2, 3]),
            max_memory_bytes=choice([300_000, 1 << 30]),
            is_behind=lambda: self.is_behind,
            is_busy=lambda: self.is_busy,
        )
        windows = [Window(choice([9, 10, 12, 15]), takeover=True) for _ in range(2)]
        wires = [self.compression.format(window) for window in windows]
        self.world = World(
            writes_per_turn=choice([1, 2, 3]),
            messages_per_flush=choice([1 << 20, 1, 5]),
            wires=[*wires, wires[0], *[WIRE] * choice([0, 1])],
        )
        self.options = Options(choice(list(Mode)), _KINDS, 0.0, choice(_DETAILS))
        self.counts: Counter[str] = Counter()

    def run(self, steps: int = STEPS) -> CompressionStatistics:
        """Take so many steps, let everybody read to the end, and check that nothing remains."""
        try:
            self._connect()
            for _ in range(steps):
                (name,) = self.random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
                getattr(self, f"_{name}")()
                self.counts[name] += 1
                self.world.check()
            self._settle()
            self.world.empty()
        finally:
            self.world.close()
        statistics = self.compression.statistics()
        assert statistics.compressors == 0
        return statistics

    def _publish(self) -> None:
        stock = TOPICS[0]
        topic = self.random.choice([stock, stock, *TOPICS[:-1]])
        size = self.random.choice(_SIZES)
        for _ in range(self.random.choice([1, 1, 2, 4])):
            self.world.publish(topic, self.random.choice(topic.kinds), size)
        if self.random.random() < 0.3:
            self.world.place([self.random.choice(POSITIONED.kinds)], size, heard=True)

    def _flush(self) -> None:
        self.world.flush_finish()
        self.world.flush_begin(stretched=self.random.random() < 0.1)
        if self.random.random() < 0.5:
            self.world.flush_finish()

    def _flush_step(self) -> None:
        if self.world.flushing:
            self.world.flush_step()

    def _read(self) -> None:
        for client in self.world.clients:
            if self.random.random() < 0.6:
                client.read(self.random.choice([100, 5000, 1 << 20]))
                client.write()
        for client in [client for client in self.world.clients if client.overflowed]:
            self.counts["overflow"] += 1
            self.world.disconnect(client)

    def _connect(self) -> None:
        if len(self.world.clients) < MAX_CLIENTS:
            client = self.world.connect(
                secured=self.random.random() < 0.2,
                max_queued_bytes=self.random.choice([1 << 20, 1 << 20, 8000]),
            )
            self.world.subscribe(client, TOPICS[::4], self.options)

    def _subscribe(self) -> None:
        if self.world.clients:
            interval_seconds = 0.5 * (self.random.random() < 0.1)
            mode = self.random.choice([self.options.mode, Mode.LATEST])
            mode = Mode.LATEST if interval_seconds else mode
            detail = self.random.choice([self.options.detail, *_DETAILS])
            options = Options(mode, _KINDS, interval_seconds, detail)
            topics = self.random.choice([TOPICS[:1], TOPICS[:2], TOPICS[3:4]])
            self.world.subscribe(self.random.choice(self.world.clients), topics, options)

    def _unsubscribe(self) -> None:
        if self.world.clients:
            client = self.random.choice(self.world.clients)
            self.world.unsubscribe(client, [self.random.choice(TOPICS)])

    def _restore(self) -> None:
        if self.world.clients:
            client = self.random.choice(self.world.clients)
            self.world.restore(
                client,
                own_positions=self.random.random() < 0.5,
                secured=self.random.random() < 0.2,
            )

    def _leave(self) -> None:
        if self.world.clients:
            leave = self.random.choice([World.end, World.vanish, World.disconnect])
            leave(self.world, self.random.choice(self.world.clients))
        for client in [client for client in self.world.clients if client.broken]:
            self.world.disconnect(client)

    def _outage(self) -> None:
        self.world.lose_source(self.random.choice([TOPICS, TOPICS[:1]]))
        self.world.recover()

    def _load(self) -> None:
        self.is_behind = self.random.random() < 0.2
        self.is_busy = self.random.random() < 0.2
        self.world.now += 0.3

    def _settle(self) -> None:
        self.world.settle()
        for client in [client for client in self.world.clients if client.ended]:
            self.world.disconnect(client)


def main() -> None:
    """Walk until the time is over, and print the account."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub.compressed_walk")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    end_seconds = time.monotonic() + 60 * options.minutes
    seed = options.seed
    totals: Counter[str] = Counter()
    while time.monotonic() < end_seconds:
        walk = Walk(seed)
        try:
            statistics = walk.run()
        except BaseException:
            print(f"failed with seed {seed}")
            raise
        totals.update(walk.counts)
        totals.update(
            messages=statistics.messages,
            inflated_bytes=statistics.input_bytes,
            full_flushes=statistics.full_flushes,
            worlds=1,
        )
        seed += 1
    print(dict(totals))


if __name__ == "__main__":
    main()
