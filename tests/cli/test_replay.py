"""`streamer replay` as a process, and the whole path from a recording to a client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
import redis as redis_py
import trio
from redis.client import PubSub

from streamer.broker.keys import position_key
from streamer.cli.errors import ExitCode
from streamer.config import Settings
from streamer.server import Server, serve
from tests.feeds.recordings import (
    BTCUSDT,
    CONTENTS,
    assert_books_agree_with_tickers,
    depth,
    snapshot,
    text_of,
    trade,
    write_recording,
)
from tests.helpers.clients import open_url
from tests.helpers.timing import DEADLINE_SECONDS


def command(url: str, *arguments: str | Path) -> list[str]:
    """Return the command line that replays to this Redis."""
    return [sys.executable, "-m", "streamer", "replay", "--redis", url, *map(str, arguments)]


def replay(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Replay at full speed to the end."""
    return subprocess.run(
        command(url, "--speed", "0", *arguments),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


async def received_while_replaying(path: Path, server: Server, redis_url: str) -> list[str]:
    """Return the text of every data message that a client in mode all receives."""
    topic = {"subscription_type": "stock", "targets": ["BTCUSDT"]}
    texts: list[str] = []
    async with open_url(server.websocket_url) as websocket:
        request = {"type": "subscribe", "mode": "all", **topic}
        await websocket.send_message(json.dumps(request))
        while json.loads(await websocket.get_message())["type"] != "subscribed":
            pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(trio.run_process, command(redis_url, "--speed", "0", path), check=True)
            )
            awaited = last_ids(path)
            while awaited:
                texts += (new := data_messages(await websocket.get_message()))
                awaited = {last for last in awaited if not any(last in text for text in new)}
    return texts


def last_ids(path: Path) -> set[str]:
    """Return the ids of the last price and the last order book of a recording."""
    text = text_of(path)
    trade_id = re.findall(r'"t":(\d+),"p"', text)[-1]
    update_id = re.findall(r'"U":\d+,"u":(\d+)', text)[-1]
    return {f'"trade_id":{trade_id},', f'"update_id":{update_id},'}


def data_messages(text: str | bytes) -> list[str]:
    """Return the data messages of one WebSocket message, which may be a batch."""
    assert isinstance(text, str)
    message = json.loads(text)
    if message["type"] != "batch":
        return [text]
    # Cut at their beginnings rather than parsed, so that every digit stays as it came.
    parts = re.split(r'(?=\{"type":"(?:price_update|orderbook_update)")', text)[1:]
    assert len(parts) == message["batch_size"] == len(message["messages"])
    return parts


async def test_a_recording_reaches_a_client_whole_and_to_the_digit(redis_url: str) -> None:
    """At full speed, every trade arrives once and in order, with the right order books."""
    settings = Settings(redis=redis_url, port=0, http_port=0)
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve, settings)
            texts = await received_while_replaying(BTCUSDT, server, redis_url)
            nursery.cancel_scope.cancel()

    recorded = re.findall(r'"t":(\d+),"p":"([0-9.]+)","q":"([0-9.]+)"', text_of(BTCUSDT))
    received = re.findall(
        r'"price":([0-9.]+),"change.*?"trade_id":(\d+),"quantity":([0-9.]+)', "\n".join(texts)
    )
    assert len(recorded) == CONTENTS[BTCUSDT].trades
    assert [(trade_id, price, quantity) for price, trade_id, quantity in received] == recorded

    messages = [json.loads(text.rstrip(",]}") + "}", parse_float=Decimal) for text in texts]
    sequences = [message["sequence"] for message in messages]
    assert sequences == list(range(1, len(texts) + 1))
    books = [message for message in messages if message["type"] == "orderbook_update"]
    assert_books_agree_with_tickers(BTCUSDT, books)


@contextmanager
def subscribed(redis: redis_py.Redis, channel: str) -> Iterator[PubSub]:
    """Subscribe to a channel, as a program that is no server."""
    with redis.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe(channel)
        assert next(pubsub.listen())["type"] == "subscribe"
        yield pubsub


def test_a_summary_tells_what_was_published(redis_url: str, tmp_path: Path) -> None:
    """In a pipe, one line says how much was published, and that no server received it."""
    path = write_recording(
        tmp_path / "r", trade(1, "2.0"), snapshot(1), depth(2, 2), trade(2, "3.0")
    )
    ended = replay(redis_url, path)
    assert ended.returncode == ExitCode.OK
    assert ended.stdout == ""
    assert re.fullmatch(
        r"Published 3 messages, 0:00:03 of the recording, in \d+\.\d s; "
        r"no server received 3 of them\n",
        ended.stderr,
    )


def test_missing_order_books_are_named_once(redis_url: str, tmp_path: Path) -> None:
    """Trades of a recording without a snapshot are published; the summary says what is missing."""
    path = write_recording(tmp_path / "r", depth(1, 1), trade(1, "2.0"))
    ended = replay(redis_url, "--loop", "--limit", "3", path)
    assert ended.returncode == ExitCode.OK
    summary, problem = ended.stderr.splitlines()
    assert summary.startswith("Published 3 messages, ")
    assert problem.startswith("BTCUSDT: no order book from 1 depth updates: ")


def test_a_subscriber_is_not_called_absent(
    redis: redis_py.Redis, redis_url: str, tmp_path: Path
) -> None:
    """Received messages are not reported as lost; --limit counts messages over --loop."""
    with subscribed(redis, "stock:BTCUSDT:price"):
        path = write_recording(tmp_path / "r", trade(1, "2.0"), trade(2, "3.0"))
        ended = replay(redis_url, "--loop", "--limit", "5", path)
    assert ended.returncode == ExitCode.OK
    assert re.fullmatch(
        r"Published 5 messages, 0:00:02 of the recording, in \d+\.\d s\n", ended.stderr
    )


def test_the_pace_is_the_recordings(redis: redis_py.Redis, redis_url: str, tmp_path: Path) -> None:
    """No message is published before its time: one that is due in a day is not."""
    path = write_recording(
        tmp_path / "r", trade(1, "2.0"), trade(2, "3.0"), interval_ns=86_400 * 10**9
    )
    with subscribed(redis, "stock:BTCUSDT:price") as pubsub:
        process = subprocess.Popen(command(redis_url, path), stderr=subprocess.PIPE, text=True)
        with process:
            try:
                messages = pubsub.listen()  # type: ignore[no-untyped-call]
                assert b'"trade_id":1,' in next(messages)["data"]
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=DEADLINE_SECONDS)
            finally:
                process.kill()
    assert process.returncode == ExitCode.INTERRUPTED
    assert re.fullmatch(r"Published 1 messages, 0:00:00 of the recording, in .* s\n", errors)


def test_a_terminal_shows_progress(redis_url: str, tmp_path: Path) -> None:
    """A terminal shows a progress bar to its end."""
    path = write_recording(tmp_path / "r", trade(1, "2.0"), trade(2, "3.0"))
    controller, terminal = os.openpty()
    with subprocess.Popen(command(redis_url, "--speed", "0", path), stderr=terminal) as process:
        os.close(terminal)
        shown = ""
        with suppress(OSError):  # which is how the other end's closing shows
            while data := os.read(controller, 65536):
                shown += data.decode()
        assert process.wait(DEADLINE_SECONDS) == ExitCode.OK
    os.close(controller)
    assert "100%" in shown
    assert "2 messages, 0:00:01 of the recording" in shown


def test_a_damaged_line_is_named_and_what_came_before_is_published(
    redis_url: str, tmp_path: Path
) -> None:
    """The error names the file and the line; the summary counts the messages before it."""
    path = write_recording(tmp_path / "r", trade(1, "2.0"), trade(2, "3.0"), "{")
    ended = replay(redis_url, path)
    assert ended.returncode == ExitCode.FAILURE
    summary, error = ended.stderr.splitlines()
    assert summary.startswith("Published 2 messages, ")
    assert error.startswith(f"streamer: error: {path}, line 3: damaged line")


def test_what_redis_refuses_is_an_error(
    redis: redis_py.Redis, redis_url: str, tmp_path: Path
) -> None:
    """A key of another program in place of the position is an error."""
    redis.set(position_key("stock:BTCUSDT"), "something else")
    ended = replay(redis_url, write_recording(tmp_path / "r", trade(1, "2.0")))
    assert ended.returncode == ExitCode.FAILURE
    (error,) = ended.stderr.splitlines()
    assert error.startswith("streamer: error: 1 of 1 not acknowledged: Redis refused stock:BTCUSDT")


def test_a_recording_of_nothing_is_an_error(redis_url: str, tmp_path: Path) -> None:
    """A file without events is an error, with --loop too."""
    path = write_recording(tmp_path / "r", snapshot(1))
    for arguments in ([path], ["--loop", path]):
        ended = replay(redis_url, *arguments)
        assert ended.returncode == ExitCode.FAILURE
        assert "no prices and no order books" in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_the_sample_comes_with_the_package(redis_url: str) -> None:
    """Both of its symbols are played, whole."""
    ended = replay(redis_url, "--sample")
    assert ended.returncode == ExitCode.OK
    messages = sum(contents.trades + contents.books for contents in CONTENTS.values())
    assert ended.stderr.startswith(f"Published {messages:,} messages, 0:00:38 of the recording")


def test_recordings_of_any_feed_are_played_by_a_mapping(redis_url: str, tmp_path: Path) -> None:
    """A bad message is reported at the end; a bad mapping before anything is published."""
    mapping = tmp_path / "m.toml"
    mapping.write_text(
        '[[message]]\npublish = "price_update"\ntopic = "stock:{c}"\nfields = { price = "p" }\n'
    )
    path = write_recording(tmp_path / "r", '{"c":"A","p":1.50}', '{"c":"A"}')
    ended = replay(redis_url, "--mapping", mapping, path)
    assert ended.returncode == ExitCode.OK
    summary, problem = ended.stderr.splitlines()
    assert summary.startswith("Published 1 messages, ")
    assert problem == "message[0]: p is missing (1 times)"
    mapping.write_text("message = 1")
    ended = replay(redis_url, "--mapping", mapping, path)
    assert ended.returncode == ExitCode.USAGE
    assert ended.stderr == f"streamer: error: {mapping}: message: expected a list, got a number\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'FILE...', or --sample"),
        (["--sample", __file__], "--sample is played alone, without FILE and --mapping"),
    ],
)
def test_files_or_the_sample_are_needed(redis_url: str, arguments: list[str], message: str) -> None:
    """One of the two."""
    ended = replay(redis_url, *arguments)
    assert (ended.returncode, ended.stderr) == (ExitCode.USAGE, f"streamer: error: {message}\n")


def test_a_missing_file_is_a_usage_error(redis_url: str, tmp_path: Path) -> None:
    """The error names the file."""
    ended = replay(redis_url, tmp_path / "none")
    assert ended.returncode == ExitCode.USAGE
    assert f"File '{tmp_path / 'none'}' does not exist" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_absent_redis_ends_the_replay_at_once(tmp_path: Path) -> None:
    """The error has its own exit code, and comes without a long wait."""
    path = write_recording(tmp_path / "r", trade(1, "2.0"))
    ended = replay(f"unix://{tmp_path}/absent.sock", path)
    assert ended.returncode == ExitCode.REDIS_REQUIRED
    (error,) = ended.stderr.splitlines()
    assert error.startswith(
        f"streamer: error: cannot reach Redis at unix://{tmp_path}/absent.sock: "
    )


def test_a_url_that_redis_does_not_know_is_a_usage_error(tmp_path: Path) -> None:
    """An unknown option of the URL is an error before anything is published."""
    path = write_recording(tmp_path / "r", trade(1, "2.0"))
    ended = replay("redis://127.0.0.1?nonsense=1", path)
    assert ended.returncode == ExitCode.USAGE
    assert ended.stderr.startswith("streamer: error: redis is no URL that can be used: ")
    assert "the option 'nonsense' is not supported" in ended.stderr
