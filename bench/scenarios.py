"""The loads of the servers: each scenario is a row of cases, each case one load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs

from bench.load import Load, Scheduled, Topic, Workload
from bench.measure import price_topics, spread_subscriptions
from streamer.feeds.recorded import recorded_feed

RECORDED_SPEED = 50
RECORDINGS = "spot_*.gz"
BOOK_LEVELS = 10
# uWebSockets listens with a backlog of 512: with more, the kernel's retries would be measured.
STORM_IN_FLIGHT = 500
# Only servers that come near these rates: others would only lengthen the run.
STRONGEST = ("streamer", "streamer-30ms", "uwebsockets", "nchan", "nats", "picows")


@attrs.frozen
class Case:
    """One load of a scenario; `x` is the quantity that varies, for plots."""

    label: str
    x: float
    workload: Callable[[], Workload]


@attrs.frozen
class Scenario:
    """Loads of one kind, and the servers that they are for (none named: all)."""

    name: str
    title: str
    explanation: str
    cases: Sequence[Case]
    servers: Sequence[str] = ()


def _hot_topic(rate: float, seconds: float) -> Workload:
    load = Load(rate, seconds)
    return Workload(load, price_topics(1), spread_subscriptions(1000, 1, 1))


def _frames(seconds: float) -> Workload:
    load = Load(25, seconds, settle_seconds=1, drain_seconds=1)
    return Workload(load, price_topics(1), spread_subscriptions(10_000, 1, 1))


def _many_topics(seconds: float) -> Workload:
    return Workload(Load(2000, seconds), price_topics(500), spread_subscriptions(200, 500, 20))


def _watchlists(seconds: float) -> Workload:
    load = Load(10_000, seconds, settle_seconds=2)
    return Workload(load, price_topics(2500), spread_subscriptions(10_000, 2500, 30))


def _book_topics(count: int) -> list[Topic]:
    bids = _levels(72500, -100)
    asks = _levels(72600, 100)
    head = (
        '{{"type":"orderbook_update","stock_code":"T{:05}","bids":[{}],"asks":[{}],'
        '"timestamp":"2024-08-09T00:00:00Z"'
    )
    return [Topic(f"stock:T{i:05}:orderbook", head.format(i, bids, asks)) for i in range(count)]


def _levels(price: int, step: int) -> str:
    level = '{{"price":{},"quantity":{},"orders":{}}}'
    return ",".join(
        level.format(price + i * step, 1500 + 37 * i, 9 + i) for i in range(BOOK_LEVELS)
    )


def order_books(seconds: float) -> Workload:
    """Return the load of 500 clients with order books of 2 KB."""
    load = Load(500, seconds, payload_bytes=2048)
    return Workload(load, _book_topics(50), spread_subscriptions(500, 50, 10))


def _slow_clients(seconds: float) -> Workload:
    # 2 KB at 200/s: a stopped client misses more in 3 s than its socket holds.
    load = Load(200, max(seconds, 5), payload_bytes=2048, slow=50, slow_seconds=3)
    return Workload(load, _book_topics(10), spread_subscriptions(250, 10, 10))


def _idle(clients: int) -> Workload:
    load = Load(0, 1, settle_seconds=1, sample=min(50, clients))
    return Workload(load, price_topics(100), spread_subscriptions(clients, 100, 1))


def _storm(seconds: float) -> Workload:
    load = Load(10, max(seconds, 8), storm=9000, in_flight=STORM_IN_FLIGHT)
    return Workload(load, price_topics(1), spread_subscriptions(10_000, 1, 1))


def _recorded(directory: Path) -> Workload:
    channels: dict[str, int] = {}
    schedule = []
    for message in recorded_feed(sorted(directory.glob(RECORDINGS))):
        topic = channels.setdefault(message.channel, len(channels))
        # The marker field takes the place of the closing brace.
        head = message.payload.decode().removesuffix("}")
        schedule.append(Scheduled(int(message.at_seconds * 1e9 / RECORDED_SPEED), topic, head))
    load = Load(0, schedule[-1].at_ns / 1e9, warmup_seconds=0, payload_bytes=1)
    topics = [Topic(channel, "{") for channel in channels]
    everything = list(range(len(topics)))
    return Workload(load, topics, [everything] * 100, schedule)


def scenarios(seconds: float, recordings: Path | None) -> list[Scenario]:
    """Return all scenarios, with each load measured for `seconds`.

    The recorded feed needs the directory of recordings; without it that scenario is left out.
    """
    found = [
        Scenario(
            "hot-topic",
            "One hot topic",
            "1,000 clients, all on one topic.",
            [
                Case(f"{rate:,} msg/s", rate, partial(_hot_topic, rate, seconds))
                for rate in (20, 50, 100, 200, 500, 1000, 2000)
            ],
        ),
        Scenario(
            "frames",
            "Frames at the limit",
            "10,000 clients on one topic, 25 publications/s: more frames are due than one core can "
            "write. What waits may share a frame, so frames/s, not updates/s, is to be compared "
            "with the C loop's; uWebSockets puts several frames into one write.",
            [Case("", 25, partial(_frames, seconds))],
            ("raw-send", *STRONGEST),
        ),
        Scenario(
            "many-topics",
            "Many topics",
            "200 clients with 20 of 500 topics each, 2,000 publications/s.",
            [Case("", 2000, partial(_many_topics, seconds))],
        ),
        Scenario(
            "watchlists",
            "Watchlists",
            "10,000 clients with 30 of 2,500 topics each, 10,000 publications/s: 1.2 million "
            "updates/s are due. Age is how long a client at worst showed an outdated value.",
            [Case("", 10_000, partial(_watchlists, seconds))],
            STRONGEST,
        ),
        Scenario(
            "order-books",
            "Order books of 2 KB",
            "500 clients with 10 of 50 order books each, 500 publications/s.",
            [Case("", 500, partial(order_books, seconds))],
        ),
        Scenario(
            "slow-clients",
            "20 % slow clients",
            "250 clients with 10 order books of 2 KB, 200 publications/s; 50 clients stop reading "
            "for 3 s. The latencies are those of the others.",
            [Case("", 200, partial(_slow_clients, seconds))],
        ),
        Scenario(
            "idle",
            "Idle clients",
            "Subscribed and silent: memory and the pace of connecting.",
            [
                Case(f"{clients:,} clients", clients, partial(_idle, clients))
                for clients in (1000, 4000, 10_000)
            ],
        ),
        Scenario(
            "storm",
            "Reconnect storm",
            "9,000 clients come at once, 500 handshakes at a time, while 1,000 receive 10 "
            "publications/s; the latencies are those of the 1,000.",
            [Case("", 9000, partial(_storm, seconds))],
        ),
    ]
    if recordings is not None:
        found.append(
            Scenario(
                "recorded",
                f"A recorded feed at {RECORDED_SPEED} times its pace",
                "Trades and order books of two symbols to 100 clients.",
                [Case("", RECORDED_SPEED, partial(_recorded, recordings))],
            )
        )
    return found
