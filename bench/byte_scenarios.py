"""The loads in which bytes on the wire are compared: compression, deltas, server-sent events."""

from __future__ import annotations

from functools import partial

from bench.feeds import market_workload
from bench.load import Load, Workload
from bench.measure import price_topics, spread_subscriptions
from bench.scenarios import Case, Scenario
from streamer.protocol.topics import Kind

HOT_TOPIC_CLIENTS = 1000
BOOKS = 30
IDLE_CLIENTS = 10_000

PLAIN = "streamer"
"""The server whose bytes and CPU the others of these scenarios are divided by."""
COMPRESSED_AND_DELTAS = ("streamer-deflate", "streamer-delta", "streamer-delta-deflate")
COMPRESSING_PEERS = (
    "uwebsockets-deflate",
    "nchan-deflate",
    "node-ws-deflate",
    "websockets-deflate",
)


def _hot_topic(rate: float, seconds: float) -> Workload:
    # As many bytes as producers write: nothing is padded.
    load = Load(rate, seconds, payload_bytes=1)
    return market_workload(Kind.PRICE, load, spread_subscriptions(HOT_TOPIC_CLIENTS, 1, 1))


def _watchlists(seconds: float) -> Workload:
    load = Load(2000, seconds, payload_bytes=1, settle_seconds=1)
    return market_workload(Kind.PRICE, load, spread_subscriptions(2000, 2500, 30))


def _books(seconds: float) -> Workload:
    load = Load(10 * BOOKS, seconds, payload_bytes=1)
    return market_workload(Kind.ORDERBOOK, load, spread_subscriptions(200, BOOKS, BOOKS))


def _idle() -> Workload:
    load = Load(0, 1, settle_seconds=1)
    return Workload(load, price_topics(1), spread_subscriptions(IDLE_CLIENTS, 1, 1))


def byte_scenarios(seconds: float) -> list[Scenario]:
    """Return the scenarios, with each load measured for `seconds`."""
    return [
        Scenario(
            "compressed-hot-topic",
            "One hot topic, compressed",
            f"{HOT_TOPIC_CLIENTS:,} clients on one price that moves.",
            [
                Case(f"{rate} msg/s", rate, partial(_hot_topic, rate, seconds))
                for rate in (20, 50, 200)
            ],
            (PLAIN, *COMPRESSED_AND_DELTAS, *COMPRESSING_PEERS),
        ),
        Scenario(
            "compressed-watchlists",
            "Watchlists, compressed",
            "2,000 clients with 30 of 2,500 prices each, 2,000 publications/s. Some 8 clients have "
            "the same list: groups are small, and each has a window of its own.",
            [Case("", 2000, partial(_watchlists, seconds))],
            (PLAIN, "streamer-deflate", *COMPRESSING_PEERS),
        ),
        Scenario(
            "delta-books",
            "Order books as deltas",
            f"200 clients with {BOOKS} order books of 900 bytes, 10 updates/s of each.",
            [Case("", 10 * BOOKS, partial(_books, seconds))],
            (PLAIN, *COMPRESSED_AND_DELTAS, *COMPRESSING_PEERS),
        ),
        Scenario(
            "sse",
            "Server-sent events",
            f"{HOT_TOPIC_CLIENTS:,} clients on one price that moves, without WebSocket. Each event "
            "names the position of the stream (`id`).",
            [Case("50 msg/s", 50, partial(_hot_topic, 50, seconds))],
            (PLAIN, "streamer-sse"),
        ),
        Scenario(
            "compressed-idle",
            "Idle clients, compressed",
            f"{IDLE_CLIENTS:,} clients, subscribed and silent.",
            [Case("", IDLE_CLIENTS, _idle)],
            (PLAIN, "streamer-deflate"),
        ),
    ]
