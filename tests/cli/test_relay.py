"""`streamer relay` as a process, from servers that speak like exchanges to streamer's clients.

Covers streamer.cli.mapping_file.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import redis as redis_py
import trio
import trio_websocket

from streamer.broker.keys import history_key, position_key
from streamer.cli import main
from streamer.cli.errors import ExitCode
from tests.feeds.exchanges import (
    UPBIT_REQUEST,
    Exchange,
    binance_snapshots,
    like_binance,
    like_upbit,
    ping_and_read,
    serving,
)
from tests.feeds.recordings import depth, snapshot, trade
from tests.helpers.clients import connected
from tests.helpers.redis_server import RedisServer
from tests.helpers.server import running_server
from tests.helpers.timing import PACE_SECONDS, eventually, real_deadline

EXAMPLES: Final = Path(__file__).parents[2] / "docs" / "examples" / "feeds"


def local(name: str, tmp_path: Path, **feed: str) -> Path:
    """Return an example mapping whose feed is a local server."""
    text = (EXAMPLES / name).read_text()
    for key, value in feed.items():
        text, count = re.subn(
            rf'^{key} = "\w+://.*"$', f'{key} = "{value}"', text, flags=re.MULTILINE
        )
        assert count == 1, key
    path = tmp_path / name
    path.write_text(text)
    return path


def without_fetch(tmp_path: Path, exchange: Exchange) -> Path:
    """Return the mapping of Binance for an exchange that sends whole books by itself."""
    mapping = local("binance.toml", tmp_path, url=exchange.url)
    mapping.write_text(re.sub(r"(?m)^fetch = .*$", "", mapping.read_text()))
    return mapping


async def start(*arguments: str | Path) -> trio.Process:
    """Start to relay."""
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", "streamer", "relay", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def drained(stream: trio.abc.ReceiveStream | None) -> str:
    """Return everything up to the end."""
    assert stream is not None
    async with stream:
        return b"".join([bytes(part) async for part in stream]).decode()


async def test_a_feed_like_binance_reaches_clients(redis_url: str, tmp_path: Path) -> None:
    """Over reconnects: each trade in order, and books that are the exchange's, without a gap."""
    async with (
        running_server(redis=redis_url) as server,
        connected(server) as client,
        serving(like_binance, snapshots=binance_snapshots()) as exchange,
    ):
        await client.subscribe("stock:BTCUSDT", mode="all")
        mapping = local("binance.toml", tmp_path, url=exchange.url, fetch=exchange.snapshot_url)
        process = await start(mapping, "--redis", redis_url)
        trades: list[int] = []
        book: dict[str, Any] = {}
        # The third connection stays: its snapshot has 202, and its last update is 205.
        while trades[-1:] != [205] or book.get("update_id") != 205:
            message = await client.data()
            assert message["type"] in {"price_update", "orderbook_update"}, message
            if message["type"] == "price_update":
                trades.append(message["trade_id"])
            else:
                book = message
                book["update_id"] = max([int(level["price"]) for level in book["bids"]], default=0)
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    assert trades == [*range(1, 6), *range(101, 106), *range(201, 206)]
    assert [level["price"] for level in book["bids"]] == [205.0, 204.0, 203.0, 0.5]
    assert "feed_lost" in errors
    assert "Traceback" not in errors
    assert re.match(
        r"Received \d+ messages over 3 connections; published \d+", errors.splitlines()[-1]
    )


async def test_a_feed_like_upbit_reaches_clients(redis_url: str, tmp_path: Path) -> None:
    """The ticket, binary frames, and heartbeats in text."""
    async with (
        running_server(redis=redis_url) as server,
        connected(server) as client,
        serving(like_upbit) as exchange,
    ):
        await client.subscribe("stock:KRW-BTC")
        mapping = local("upbit.toml", tmp_path, url=exchange.url)
        mapping.write_text(
            mapping.read_text().replace("heartbeat_seconds = 60", "heartbeat_seconds = 0.01")
        )
        process = await start(mapping, "--redis", redis_url)
        types: set[str] = set()
        while types != {"price_update", "orderbook_update"} or len(exchange.requests) < 4:
            message = await client.data()
            types.add(message["type"])
        process.send_signal(signal.SIGTERM)
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    assert [part["type"] for part in exchange.requests[0][1:]] == ["trade", "orderbook"]
    assert set(exchange.requests[1:]) == {"PING"}
    assert "messages are not in the mapping" in errors  # the answers to PING


BAD_TRADES: Final = ("PONG", trade(1, "NaN"), trade(2, "1.0"), trade(3, "-1e4000"), trade(4, "4.0"))


async def send_bad_trades(exchange: Exchange, socket: trio_websocket.WebSocketConnection) -> None:
    """Send good trades among bad ones, many times."""
    for _ in range(200):
        for text in BAD_TRADES:
            await socket.send_message(text)
    await ping_and_read(exchange, socket)


async def test_bad_messages_are_counted_and_logged_at_a_bounded_rate(tmp_path: Path) -> None:
    """They cost the others nothing. A dry run needs no Redis."""
    async with real_deadline(), serving(send_bad_trades) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--dry-run")
        async with trio.open_nursery() as nursery:
            lines: list[str] = []

            async def read_lines() -> None:
                lines.extend((await drained(process.stdout)).splitlines())

            nursery.start_soon(read_lines)
            await eventually(lambda: exchange.pongs == 1)
            process.send_signal(signal.SIGINT)
            errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    published = [line.partition(" ") for line in lines]
    assert {channel for channel, _, _ in published} == {"stock:BTCUSDT:price"}
    ids = [json.loads(text)["trade_id"] for _, _, text in published]
    assert ids == [2, 4] * 200
    assert "published 400; 600 invalid" in errors.splitlines()[-1]
    assert 2 <= errors.count("message_invalid") < 100


async def test_a_reader_of_a_dry_run_that_has_seen_enough_ends_it(tmp_path: Path) -> None:
    """As `head` does; that is no error."""
    async with real_deadline(), serving(send_books_without_end) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--dry-run")
        assert process.stdout is not None
        await process.stdout.receive_some()
        await process.stdout.aclose()
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    assert errors.splitlines()[-1].startswith("Received ")
    assert "Broken pipe" not in errors
    assert "BrokenPipeError" not in errors


async def test_what_redis_refuses_costs_nothing_else(
    redis: redis_py.Redis, redis_url: str, tmp_path: Path
) -> None:
    """A topic whose position is another program's key is refused, and counted."""
    redis.set(position_key("stock:BTCUSDT"), "something else")
    async with real_deadline(), serving(like_binance) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--redis", redis_url)
        await eventually(lambda: exchange.pongs >= 4)
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    assert "published 0; 15 changes of order books withheld; 15 refused" in errors.splitlines()[-1]


async def send_books_without_end(
    exchange: Exchange, socket: trio_websocket.WebSocketConnection
) -> None:
    """Send a whole book first, and then one change after another."""
    await socket.send_message(snapshot(0))
    for number in itertools.count(1):
        exchange.sent += 1
        await socket.send_message(depth(number, number, {"1.0": f"{number}.0"}))
        await trio.sleep(PACE_SECONDS)


async def test_changes_of_books_that_are_lost_are_followed_by_whole_books(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """When Redis was away for too long, the feed begins anew; no change comes before its book."""
    redis_server = own_redis_server(save="", appendonly="no")
    async with real_deadline(), serving(send_books_without_end) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--redis", redis_server.url, "--hold-seconds", "0.2")
        with redis_server.connect() as client:
            await eventually(lambda: client.xlen(history_key("stock:BTCUSDT")) > 10)
        redis_server.kill()
        await eventually(lambda: exchange.connections >= 2)
        redis_server.start()
        with redis_server.connect() as client:
            await eventually(lambda: client.xlen(history_key("stock:BTCUSDT")) > 10)
            entries = client.xrange(history_key("stock:BTCUSDT"))
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    types = [json.loads(entry[b"m"])["type"] for _, entry in entries]
    assert types[:2] == ["orderbook_update", "orderbook_delta"], types
    assert "publications_lost" in errors
    assert process.returncode == ExitCode.OK, errors


async def test_a_server_that_comes_later_has_the_book(redis_url: str, tmp_path: Path) -> None:
    """The feed's own book is long gone then: the relay publishes it whole for the server."""
    async with real_deadline(), serving(send_books_without_end) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--redis", redis_url)
        await eventually(lambda: exchange.sent > 100)
        async with running_server(redis=redis_url) as server, connected(server) as client:
            await client.subscribe("stock:BTCUSDT")
            books = 0
            while books < 3:
                message = await client.data()
                books = books + 1 if message["type"] == "orderbook_update" else 0
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    assert exchange.connections == 1
    assert process.returncode == ExitCode.OK, errors


async def test_no_change_follows_one_that_is_refused(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Not even one that waits for Redis together with it: it would make a wrong book."""
    redis_server = own_redis_server(save="", appendonly="no")
    is_stopped = trio.Event()

    async def send(exchange: Exchange, socket: trio_websocket.WebSocketConnection) -> None:
        quantities = ["1.0", "2.0", "1e399", "4.0", "5.0"]  # one is beyond the range of a double
        if exchange.connections > 1:
            quantities = ["1.0", "2.0", "3.0"]
        await socket.send_message(snapshot(0))
        await is_stopped.wait()
        for number, quantity in enumerate(quantities, 1):
            await socket.send_message(depth(number, number, {"1.0": quantity}))
        await ping_and_read(exchange, socket)

    async with real_deadline(), serving(send) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--redis", redis_server.url)
        history = history_key("stock:BTCUSDT")
        with redis_server.connect() as client:
            await eventually(lambda: client.xlen(history) == 1)
            redis_server.pause()
            is_stopped.set()
            await eventually(lambda: exchange.pongs == 1)  # all are read before the ping
            redis_server.resume()
            await eventually(lambda: client.xlen(history) >= 7)
            entries = client.xrange(history)
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    books = [
        [level["quantity"] for level in json.loads(entry[b"m"])["bids"]] for _, entry in entries
    ]
    assert books == [[], [1], [2], [], [1], [2], [3]]
    assert "; 1 refused; 2 lost" in errors.splitlines()[-1]


async def test_a_whole_book_that_is_refused_for_a_moment_is_published_again(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """At a later change, without a new connection, also where it took the place of a change."""
    redis_server = own_redis_server(user="writer on nopass ~* &* +@all")
    is_revoked, is_granted = trio.Event(), trio.Event()

    async def send(exchange: Exchange, socket: trio_websocket.WebSocketConnection) -> None:
        await socket.send_message(snapshot(0, {"1.0": "1"}, {"2.0": "1"}))
        await is_revoked.wait()
        # Crosses the book, so that it is published whole.
        await socket.send_message(depth(1, 1, {"3.0": "1"}))
        await is_granted.wait()
        await socket.send_message(depth(2, 2, {"3.0": "0"}))
        for number in itertools.count(3):
            await socket.send_message(depth(number, number, {"1.5": f"{number}.0"}))
            await trio.sleep(PACE_SECONDS)

    async with real_deadline(), serving(send) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        url = f"redis://writer:any@127.0.0.1:{redis_server.port}"
        process = await start(mapping, "--redis", url)
        history = history_key("stock:BTCUSDT")
        with redis_server.connect() as client:
            await eventually(lambda: client.xlen(history) == 1)
            client.execute_command("ACL", "SETUSER", "writer", "-eval", "-evalsha")
            is_revoked.set()
            await eventually(client.acl_log)
            client.execute_command("ACL", "SETUSER", "writer", "+eval", "+evalsha")
            is_granted.set()
            await eventually(lambda: client.xlen(history) >= 4)
            entries = client.xrange(history)
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    messages = [json.loads(entry[b"m"]) for _, entry in entries]
    types = [message["type"] for message in messages]
    assert types[:3] == ["orderbook_update", "orderbook_update", "orderbook_delta"], types
    prices = [level["price"] for level in messages[1]["bids"]]
    assert prices in ([1.0], [1.5, 1.0])  # the first changes may have come before the refusal
    assert exchange.connections == 1
    assert "; 1 refused" in errors.splitlines()[-1]


async def test_a_book_that_a_change_has_spoilt_is_fetched_anew(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """Also where the whole book was to be published in place of the change."""
    redis_server = own_redis_server()

    async def send(exchange: Exchange, socket: trio_websocket.WebSocketConnection) -> None:
        await socket.send_message(snapshot(0, {"1.0": "1"}, {"2.0": "1"}))
        if exchange.connections == 1:
            # Crosses the book, with a number beyond the range of a double.
            await socket.send_message(depth(1, 1, {"3.0": "1e399"}))
        await ping_and_read(exchange, socket)

    async with real_deadline(), serving(send) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--redis", redis_server.url)
        history = history_key("stock:BTCUSDT")
        with redis_server.connect() as client:
            await eventually(lambda: client.xlen(history) == 2)
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.OK, errors
    assert exchange.connections == 2
    assert "the book of stock:BTCUSDT:orderbook was refused" in errors


async def test_what_redis_has_not_acknowledged_at_the_end_is_counted(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """A second signal does not wait for a Redis that is slow; nothing is lost without a trace."""
    redis_server = own_redis_server(save="", appendonly="no")
    async with real_deadline(), serving(send_books_without_end) as exchange:
        mapping = without_fetch(tmp_path, exchange)
        process = await start(mapping, "--redis", redis_server.url)
        with redis_server.connect() as client:
            await eventually(lambda: client.xlen(history_key("stock:BTCUSDT")) > 10)
            client.client_pause(60_000)
        seen = exchange.sent
        await eventually(lambda: exchange.sent > seen + 10)
        process.send_signal(signal.SIGINT)
        await eventually(lambda: exchange.sockets[0].closed is not None)  # or the two are one
        process.send_signal(signal.SIGINT)
        errors = await drained(process.stderr)
        await process.wait()
    summary = errors.splitlines()[-1]
    counts = re.match(
        r"Received ([\d,]+) messages .* published ([\d,]+); .* ([\d,]+) not acknowledged", summary
    )
    assert counts is not None, summary
    received, published, rest = (int(count.replace(",", "")) for count in counts.groups())
    assert received == published + rest


async def test_a_redis_that_is_away_at_the_start_is_an_error(tmp_path: Path) -> None:
    """As for the other commands that publish."""
    async with real_deadline(), serving(like_upbit) as exchange:
        mapping = local("upbit.toml", tmp_path, url=exchange.url)
        process = await start(mapping, "--redis", f"unix://{tmp_path}/absent.sock")
        errors = await drained(process.stderr)
        await process.wait()
    assert process.returncode == ExitCode.REDIS_REQUIRED
    assert "cannot reach Redis" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_every_fault_of_a_mapping_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the file and the key, before anything is connected to."""
    path = tmp_path / "m.toml"
    path.write_text('[[message]]\npublish = "price"\ntopics = "stock:A"\n')
    assert main(["relay", str(path)]) == ExitCode.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("streamer: error: ").split(": ")[1] for line in lines] == [
        "message[0].publish",
        "message[0].topic",
        "message[0].topics",
    ]


def test_a_mapping_without_a_feed_needs_a_url(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mapping may be for replays only."""
    path = tmp_path / "m.toml"
    path.write_text(
        '[[message]]\npublish = "price_update"\ntopic = "stock:A"\nfields = { price = "p" }\n'
    )
    assert main(["relay", str(path)]) == ExitCode.USAGE
    assert "has no [feed], and no --url is given" in capsys.readouterr().err


def test_the_request_of_the_example_has_a_ticket() -> None:
    """The server for the tests asks for the same."""
    text = (EXAMPLES / "upbit.toml").read_text()
    (request,) = re.findall(r"'''\n(.*?)'''", text, flags=re.DOTALL)
    assert [*map(dict.keys, json.loads(request))] == [*map(dict.keys, json.loads(UPBIT_REQUEST))]
