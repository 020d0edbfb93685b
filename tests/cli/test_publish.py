"""`streamer publish` with a real Redis: publications, output and exit codes.

Covers streamer.cli.publish_messages and streamer.cli.producer.
"""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import orjson
import pytest
import redis as redis_py

from streamer.broker.keys import history_key
from streamer.cli import main
from streamer.cli.errors import ExitCode
from tests.helpers.redis_server import RedisServer
from tests.helpers.targets import SAMPLES
from tests.helpers.timing import DEADLINE_SECONDS

PRICE: Final = (
    b'{"type":"price_update","stock_code":"005930","price":72500.10,"change":-500,'
    b'"change_percent":-0.680,"volume":1200,"timestamp":"2024-08-09T00:00:00.000Z","venue":"KRX"}'
)
ORDERBOOK: Final = b'{"type":"orderbook_update","stock_code":"005930","bids":[],"asks":[]}'
STATUS: Final = b'{"type":"market_status","market":"KOSPI","status":"open"}'
ALERT: Final = b'{"alert_id":1,"stock_code":"005930","alert_type":"price","message":"up"}'


@contextlib.contextmanager
def publishing(url: str, *arguments: str, stdin: IO[bytes] | int) -> Iterator[Any]:
    """Run a `streamer publish` process; it does not outlive the block."""
    command = [sys.executable, "-m", "streamer", "publish", "--redis", url, *arguments]
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = threading.Timer(DEADLINE_SECONDS, process.kill)
        deadline.start()
        try:
            yield process
        finally:
            deadline.cancel()
            process.kill()


def publish_lines(url: str, *arguments: str, text: bytes) -> tuple[int, list[Any], str]:
    """Publish lines; return the exit code, the JSON lines of stdout, and stderr."""
    with publishing(url, *arguments, "-", stdin=subprocess.PIPE) as process:
        out, err = process.communicate(text)
    return process.returncode, [orjson.loads(line) for line in out.splitlines()], err.decode()


def history(redis: redis_py.Redis, topic: str) -> list[bytes]:
    """Return the history of a topic, oldest first."""
    entries: Any = redis.xrange(history_key(topic))
    return [fields[b"m"] for _, fields in entries]


@pytest.mark.parametrize(
    ("arguments", "topic", "expected"),
    [
        (
            ["stock:005930", "--price", "72500"],
            "stock:005930",
            b'","price":72500,"change":0,"change_percent":0,"volume":0,"epoch":',
        ),
        (
            ["stock:005930:price", "--price", "72500.10", "--change", "-1e2", "--volume", "1.50"],
            "stock:005930",
            b'"price":72500.10,"change":-1e2,"change_percent":0,"volume":1.50,"epoch":',
        ),
        (
            ["sector:IT", "--price", "1", "--stock-code", "005930"],
            "sector:IT",
            b'"stock_code":"005930","price":1,',
        ),
        (
            ["market:KOSPI", "--status", "open"],
            "market:KOSPI",
            b',"market":"KOSPI","status":"open","epoch":',
        ),
        (["stock:005930", "--json", ORDERBOOK.decode()], "stock:005930", ORDERBOOK[28:-1]),
        (["stock:005930", "--json", PRICE.decode()], "stock:005930", PRICE[:-1]),
    ],
)
def test_one_message_is_published_as_typed(
    redis_url: str,
    redis: redis_py.Redis,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    topic: str,
    expected: bytes,
) -> None:
    """Every digit is the user's; other members have defaults, and the position is Redis'."""
    assert main(["publish", "--redis", redis_url, *arguments]) == ExitCode.OK
    (text,) = history(redis, topic)
    assert expected in text
    assert orjson.loads(text)["sequence"] == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "published 1 message, no server received any\n"


@pytest.mark.parametrize("target", SAMPLES)
def test_a_topic_with_any_target_can_be_named(
    redis_url: str, redis: redis_py.Redis, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """As a topic, and by its channel where the topic itself reads like one."""
    if target.endswith(":price"):
        where = [f"stock:{target}:price"]
    else:
        where = [f"stock:{target}", f"stock:{target}:price"]
    for name in where:
        assert main(["publish", "--redis", redis_url, name, "--price", "1"]) == ExitCode.OK
    assert [orjson.loads(text)["stock_code"] for text in history(redis, f"stock:{target}")] == [
        target for _ in where
    ]
    capsys.readouterr()


def test_a_topic_of_a_user_can_be_named(
    redis_url: str, redis: redis_py.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """The channel follows from the type of the message."""
    text = ALERT[:-1].decode() + ',"type":"alert"}'
    arguments = ["--redis", redis_url, "--verbose", "user:u1", "--json", text]
    assert main(["publish", *arguments]) == ExitCode.OK
    assert orjson.loads(capsys.readouterr().out)["channel"] == "alerts:u1"
    assert len(history(redis, "user:u1")) == 1


def test_servers_that_received_it_are_counted(
    redis_url: str, redis: redis_py.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary counts receivers, and --verbose prints the position."""
    with redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe("alerts:u1")
        messages = subscription.listen()
        next(messages)
        arguments = ["--redis", redis_url, "--verbose", "alerts:u1", "--json", ALERT.decode()]
        assert main(["publish", *arguments]) == ExitCode.OK
        assert ALERT[1:-1] in next(messages)["data"]
    out, err = capsys.readouterr()
    receipt = orjson.loads(out)
    assert receipt.pop("epoch")
    assert receipt == {"channel": "alerts:u1", "sequence": 1, "receivers": 1}
    assert err == "published 1 message, received 1 times\n"


def test_plain_leaves_nothing_in_redis(redis_url: str, redis: redis_py.Redis) -> None:
    """There is no position and no history, as with Redis' own PUBLISH."""
    with redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe("stock:005930:price")
        messages = subscription.listen()
        next(messages)
        arguments = ["--redis", redis_url, "--plain", "stock:005930", "--json", PRICE.decode()]
        assert main(["publish", *arguments]) == ExitCode.OK
        assert next(messages)["data"] == PRICE
    assert history(redis, "stock:005930") == []


def test_plain_needs_no_permission_for_scripts(
    own_redis_server: Callable[..., RedisServer], capfd: pytest.CaptureFixture[str]
) -> None:
    """A Redis user who may only PUBLISH publishes with --plain, and is refused without it."""
    server = own_redis_server(
        user="writer on nopass resetkeys allchannels -@all +publish +client|setname"
    )
    url = f"redis://writer:any@127.0.0.1:{server.port}"
    arguments = ["publish", "--redis", url, "stock:005930", "--price", "1"]
    assert main([*arguments, "--plain"]) == ExitCode.OK
    assert "published 1 message" in capfd.readouterr().err
    assert main(arguments) == ExitCode.FAILURE
    assert "no permissions" in capfd.readouterr().err


def test_a_message_that_servers_would_not_take_is_refused(
    redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The bound is the same setting as that of the server."""
    arguments = ["publish", "--redis", redis_url, "--max-publication-bytes", "200"]
    assert main([*arguments, "stock:005930", "--json", PRICE.decode()]) == ExitCode.FAILURE
    assert "stock:005930:price" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stock:005930"], "one of --price, --status and --json says what to publish"),
        (
            ["stock:005930", "--price", "1", "--status", "open"],
            "one of --price, --status and --json says what to publish",
        ),
        (["market:KOSPI", "--status", "open", "--volume", "1"], "--volume belongs with --price"),
        (["stock:005930", "--price", "1,5"], "Invalid value for '--price': '1,5' is not a number"),
        (["stock:005930", "--price", "+1"], "Invalid value for '--price': '+1' is not a number"),
        (["stock:005930", "--price", "NaN"], "Invalid value for '--price': 'NaN' is not a number"),
        (["market:KOSPI", "--status", "shut"], "Invalid value for '--status': 'shut' is not one"),
        (["stock:a{b", "--price", "1"], "stock:a{b: invalid target 'a{b'"),
        (["stok:005930", "--price", "1"], "stok:005930: no channel of data messages"),
        (["market:KOSPI", "--price", "1"], "market:KOSPI: it carries status, not price"),
        (["user:u1", "--price", "1"], "user:u1: it carries alerts and notifications, not price"),
        (["sector:IT", "--price", "1"], "sector:IT: --stock-code must say which stock"),
        (["alerts:u1", "--price", "1"], "alerts:u1: type 'price_update' where 'alert' belongs"),
        (["alerts:u1", "--status", "open"], "alerts:u1: type 'market_status' where"),
        (["stock:005930", "--json", "{"], "stock:005930: not JSON"),
        (["stock:005930", "--json", "[]"], "stock:005930: not a JSON object but list"),
        (["stock:005930", "--json", "{}"], "stock:005930: the JSON's type must be one of price"),
        (["stock:1", "--json", ORDERBOOK.decode()], "stock:1: stock_code is '005930' on the"),
        (["-", "--price", "1"], "--price is for one message, - for lines of stdin"),
        (["stock:1", "--price", "1", "--channel", "x"], "--channel and --skip-invalid are for"),
        (["stock:1", "--price", "1", "--skip-invalid"], "--channel and --skip-invalid are for"),
        ([], "Missing argument 'WHERE'"),
    ],
)
def test_what_makes_no_message_is_a_usage_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is wrong, before anything is sent."""
    assert main(["publish", *arguments]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert err.startswith(f"streamer: error: {message}")
    assert err.count("\n") == 1
    assert out == ""


def test_lines_go_where_their_type_and_key_say(redis_url: str, redis: redis_py.Redis) -> None:
    """Each type of message goes to its channel; receipts are in the order of the lines."""
    text = b"\n".join((PRICE, b"", ORDERBOOK, STATUS, PRICE))  # the last without an end of line
    code, receipts, err = publish_lines(redis_url, "--verbose", text=text)
    assert (code, err) == (ExitCode.OK, "published 4 messages, no server received any\n")
    assert [(receipt["channel"], receipt["sequence"]) for receipt in receipts] == [
        ("stock:005930:price", 1),
        ("stock:005930:orderbook", 2),
        ("market:KOSPI:status", 1),
        ("stock:005930:price", 3),
    ]
    assert PRICE[:-1] in history(redis, "stock:005930")[2]


def test_a_file_may_be_stdin(redis_url: str, redis: redis_py.Redis, tmp_path: Path) -> None:
    """A file of many reads is published whole, with lines across their bounds."""
    path = tmp_path / "messages.jsonl"
    path.write_bytes(b"".join(PRICE.replace(b"1200", b"%d" % n) + b"\n" for n in range(3000)))
    with path.open("rb") as file:
        arguments = ("--history-length", "10000", "-")
        with publishing(redis_url, *arguments, stdin=file) as process:
            _, err = process.communicate()
    assert process.returncode == ExitCode.OK
    assert err == b"published 3000 messages, no server received any\n"
    volumes = [orjson.loads(text)["volume"] for text in history(redis, "stock:005930")]
    assert volumes == list(range(3000))


def test_lines_are_published_as_they_come(redis_url: str, redis: redis_py.Redis) -> None:
    """Lines of a pipe are published before its end; after Ctrl-C the summary is printed."""
    with publishing(redis_url, "--verbose", "-", stdin=subprocess.PIPE) as process:
        for sequence in (1, 2):
            process.stdin.write(PRICE + b"\n")
            process.stdin.flush()
            assert orjson.loads(process.stdout.readline())["sequence"] == sequence
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        process.wait()
    assert process.returncode == ExitCode.INTERRUPTED
    assert err == b"published 2 messages, no server received any\n"
    assert len(history(redis, "stock:005930")) == 2


def test_byte_order_marks_before_lines_are_left_out(redis_url: str, redis: redis_py.Redis) -> None:
    """The first line may begin with one, and so may others, where files were joined."""
    mark = b"\xef\xbb\xbf"
    text = mark + PRICE + b"\r\n" + mark + b"\n" + mark + PRICE
    code, _, err = publish_lines(redis_url, text=text)
    assert (code, err) == (ExitCode.OK, "published 2 messages, no server received any\n")
    assert all(text.startswith(PRICE[:-1]) for text in history(redis, "stock:005930"))


def test_a_line_that_does_not_end_is_an_error(redis_url: str) -> None:
    """The memory for a line is bounded."""
    code, _, err = publish_lines(redis_url, text=b" " * (17 << 20))
    assert code == ExitCode.FAILURE
    assert "a line of more than 16777216 bytes" in err.splitlines()[-1]


def test_a_reader_that_has_seen_enough_ends_it(redis_url: str) -> None:
    """As in `| head -1`, the exit code is a failure, and there is no traceback."""
    command = [sys.executable, "-m", "streamer", "publish", "--redis", redis_url, "--verbose", "-"]
    shell = f"({subprocess.list2cmdline(command)}; echo $? >&2) | head -1"
    feed = b"".join(PRICE + b"\n" for _ in range(3000))
    ran = subprocess.run(
        ["/bin/sh", "-c", shell],
        input=feed,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert ran.stdout.count(b"\n") == 1
    assert b"Traceback" not in ran.stderr
    assert b"Exception" not in ran.stderr
    assert ran.stderr.splitlines()[-1] == b"1"


def test_a_channel_for_all_lines(redis_url: str, redis: redis_py.Redis) -> None:
    """A price of a stock can be published for its sector; alerts need a channel."""
    code, _, _ = publish_lines(redis_url, "--channel", "sector:IT:price", text=PRICE)
    assert code == ExitCode.OK
    assert PRICE[:-1] in history(redis, "sector:IT")[0]
    code, receipts, _ = publish_lines(redis_url, "--verbose", "--channel", "alerts:u1", text=ALERT)
    assert code == ExitCode.OK
    assert [(receipt["channel"], receipt["sequence"]) for receipt in receipts] == [("alerts:u1", 1)]
    assert ALERT[1:-1] in history(redis, "user:u1")[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "not JSON"),
        (b'"text"', "not a JSON object but str"),
        (ALERT, "without --channel its type must be one of price_update, orderbook_update"),
        (b'{"type":["price_update"]}', "without --channel its type must be one of"),
        (b'{"type":"price_update","stock_code":"*"}', "no channel of data messages: invalid"),
        (PRICE.replace(b"72500.10", b'"72500"'), "$.price: expected int or float, got str"),
    ],
)
def test_the_first_bad_line_ends_it(
    redis_url: str, redis: redis_py.Redis, line: bytes, reason: str
) -> None:
    """The lines before it are published, and the error names the line."""
    text = b"\n".join((PRICE, b"", line, PRICE))
    code, _, err = publish_lines(redis_url, text=text)
    assert code == ExitCode.FAILURE
    summary, error = err.splitlines()
    assert summary == "published 1 message, no server received any"
    assert error.startswith(f"streamer: error: line 3: {reason}")
    assert len(history(redis, "stock:005930")) == 1


def test_bad_lines_may_be_skipped(redis_url: str, redis: redis_py.Redis) -> None:
    """Each is reported with its number, and counted."""
    text = b"\n".join((b"{", PRICE, ALERT, PRICE))
    code, _, err = publish_lines(redis_url, "--skip-invalid", text=text)
    assert code == ExitCode.OK
    first, second, summary = err.splitlines()
    assert first.startswith("skipped line 1: not JSON")
    assert second.startswith("skipped line 3: without --channel")
    assert summary == "published 2 messages, no server received any; 2 invalid lines skipped"
    assert len(history(redis, "stock:005930")) == 2


def test_a_redis_that_is_not_there_is_told_at_once(
    own_redis_server: Callable[..., RedisServer], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the URL without its password."""
    server = own_redis_server()
    server.stop()
    url = f"redis://:secret@127.0.0.1:{server.port}"
    code = main(["publish", "--redis", url, "stock:005930", "--price", "1"])
    assert code == ExitCode.REDIS_REQUIRED
    err = capsys.readouterr().err
    assert err.startswith("streamer: error: cannot reach Redis at redis://")
    assert str(server.port) in err
    assert "secret" not in err


def test_a_redis_that_goes_away_is_waited_for_but_not_for_ever(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """The error names the first unacknowledged line."""
    server = own_redis_server()
    arguments = ("--verbose", "--hold-seconds", "0.2", "-")
    with publishing(server.url, *arguments, stdin=subprocess.PIPE) as process:
        process.stdin.write(PRICE + b"\n")
        process.stdin.flush()
        assert process.stdout.readline()
        server.stop()
        _, err = process.communicate(PRICE + b"\n" + PRICE + b"\n")
    assert process.returncode == ExitCode.REDIS_REQUIRED
    summary, error = err.decode().splitlines()
    assert summary == "published 1 message, no server received any"
    assert error.startswith("streamer: error: from line 2: 2 of 2 not acknowledged: nothing")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_hold_time_that_is_none_is_refused(
    redis_url: str, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    """With 0, no message would ever be acknowledged in time."""
    arguments = ["publish", "--redis", redis_url, "--hold-seconds", seconds, "stock:1"]
    assert main([*arguments, "--price", "1"]) == ExitCode.USAGE
    assert "--hold-seconds" in capsys.readouterr().err


def test_what_redis_refuses_is_told_in_its_words(
    own_redis_server: Callable[..., RedisServer], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of a user who may not write is the one of Redis."""
    server = own_redis_server(user="reader on nopass allchannels allkeys -@all +client")
    url = f"redis://reader:any@127.0.0.1:{server.port}"
    assert main(["publish", "--redis", url, "stock:1", "--price", "1"]) == ExitCode.FAILURE
    summary, error = capsys.readouterr().err.splitlines()
    assert summary == "published 0 messages, no server received any"
    assert "Redis refused stock:1:price: NOPERM" in error
