"""`streamer listen`: the messages of some topics, as a live table or as JSON lines."""

import math
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from streamer.cli.connect_options import check_url, ssl_context, with_ca, with_duration
from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.signals import handle_end_signals
from streamer.client import (
    DEFAULT_URL,
    Account,
    Client,
    ClientError,
    Kind,
    Mode,
    Topic,
    open_client,
)

_LINES_PER_WRITE: Final = 1000
_STDOUT: Final = 1

_HELP: Final = """Subscribe to topics and show their messages.

\b
  streamer listen stock:005930                      a stock: its price and its order book
  streamer listen stock:005930 market:KOSPI sector:semiconductors
  streamer listen stock:005930 --kinds price --count 10 | jq .price
  streamer listen stock:005930 --duration 60 --verify
  streamer listen --token-file token.txt            the alerts of a user

A topic is TYPE:TARGET with a type of stock, market, sector or watchlist. A terminal shows a table
with the latest values of each stock and market, which the arrow keys scroll; on a narrow one,
columns are left out. A pipe or a file gets every message as the server sent it, one JSON object a
line. A connection that is lost is made again; the messages that were missed follow,
or are announced as a gap. Ctrl-C ends it.

With --verify, the output ends with an account on stderr: how many messages were received and how
many merged by policy, which gaps were announced, and how often the server broke its promise that
no message is lost, repeated or out of order unannounced. If it did, the exit code is 1.
"""


def _parse_topics(
    _context: click.Context, _parameter: click.Parameter, texts: Sequence[str]
) -> list[Topic]:
    try:
        return [Topic.parse(text) for text in texts]
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _parse_kinds(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> list[Kind] | None:
    if text is None:
        return None
    known = (Kind.PRICE, Kind.ORDERBOOK, Kind.STATUS)
    kinds = [kind.strip() for kind in text.split(",")]
    for kind in kinds:
        if kind not in known:
            raise click.UsageError(f"kinds are {', '.join(known)}, not {kind!r}")
    return [Kind(kind) for kind in kinds]


@attrs.frozen(kw_only=True)
class _Request:
    """The arguments of the command line."""

    topics: list[Topic]
    token_file: Path | None
    url: str
    kinds: list[Kind] | None
    mode: str
    max_rate: float | None
    delta: bool
    depth: int | None
    count: int | None
    duration: float | None
    compress: bool
    verify: bool
    ssl_context: ssl.SSLContext | None


@click.command("listen", help=_HELP)
@click.argument("topics", nargs=-1, metavar="TOPIC...", callback=_parse_topics)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A file with an access token, read again when a new one is needed. The user's alerts and "
    "notifications come without a topic.",
)
@click.option(
    "--url",
    envvar="STREAMER_URL",
    default=DEFAULT_URL,
    show_default=True,
    metavar="URL",
    callback=check_url,
    help="The server; also the variable STREAMER_URL.",
)
@click.option(
    "--kinds",
    metavar="LIST",
    callback=_parse_kinds,
    help="Only these kinds of messages: price, orderbook, status.",
)
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.LATEST.value,
    show_default=True,
    help="When this end cannot keep up: only the latest message of each topic, or all of them "
    "until the server closes the connection.",
)
@click.option(
    "--max-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="At most N messages per second of each topic and kind, the newest ones.",
)
@click.option(
    "--delta",
    is_flag=True,
    help="Receive only what changed in prices and order books; a table shows them whole, and "
    "lines are as the server sent them.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the best N levels of each side of an order book.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@with_duration
@click.option("--compress", is_flag=True, help="Let the server compress messages.")
@click.option("--verify", is_flag=True, help="End with an account that proves the stream.")
@with_ca
def command(*, ca: Path | None, **options: Any) -> ExitCode:
    """Listen until a signal, the count or the duration ends it."""
    request = _Request(ssl_context=ssl_context(ca), **options)
    if not request.topics and request.token_file is None:
        raise click.UsageError("Missing argument 'TOPIC...'.")
    result = trio.run(_run, request)
    if request.verify and result.account is not None:
        click.echo(str(result.account), err=True)
    if result.failure is not None:
        raise result.failure
    if request.verify and result.account is not None and result.account.violations:
        raise CommandError(f"the server broke its contract {result.account.violations} times")
    is_limited = request.count is not None or request.duration is not None
    return ExitCode.INTERRUPTED if result.interrupted and is_limited else ExitCode.OK


@attrs.define
class _Result:
    """The outcome of listening."""

    account: Account | None = None
    failure: click.UsageError | CommandError | None = None
    interrupted: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Cancelled by a signal."""


async def _run(request: _Request) -> _Result:
    result = _Result()

    def interrupt(_number: signal.Signals) -> None:
        result.interrupted = True
        result.scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(handle_end_signals, interrupt)
        with result.scope:
            await _listen(request, result)
        nursery.cancel_scope.cancel()
    return result


async def _listen(request: _Request, result: _Result) -> None:
    show = _show_table if sys.stdout.isatty() else _write_lines
    try:
        token_file = request.token_file
        token = None if token_file is None else partial(_read_token, token_file)
        async with open_client(
            request.url,
            token=token,
            ssl_context=request.ssl_context,
            compress=request.compress,
        ) as client:
            # While connected, a signal cancels this scope only: the connection is then closed.
            with trio.CancelScope() as result.scope:
                try:
                    await client.subscribe(
                        request.topics,
                        kinds=request.kinds,
                        mode=Mode(request.mode),
                        max_rate=request.max_rate,
                        delta=request.delta,
                        depth=request.depth,
                    )
                    with trio.move_on_after(request.duration or math.inf):
                        await show(client, request)
                finally:
                    result.account = client.account()
    except ClientError as error:
        result.failure = CommandError(str(error))
    except ValueError as error:
        result.failure = click.UsageError(str(error))
    except BrokenPipeError:
        pass  # the reader of the pipe has ended, as `head` does


def _read_token(path: Path) -> str:
    return path.read_text().strip()


async def _write_lines(client: Client, request: _Request) -> None:
    left = math.inf if request.count is None else request.count
    while left > 0:
        events = [await client.receive()]
        try:
            while len(events) < min(left, _LINES_PER_WRITE):
                events.append(client.receive_nowait())
        except (trio.WouldBlock, ClientError):
            pass  # the next receive raises the error again, after the messages before it
        left -= len(events)
        lines = "".join(f"{_one_line(event.text)}\n" for event in events).encode()
        # In a thread: a reader that stalls must not delay signals and the answers to pings.
        await trio.to_thread.run_sync(_write, lines, abandon_on_cancel=True)


def _one_line(text: str) -> str:
    # In JSON, line ends are white space between tokens: inside a string they are escaped.
    return text.replace("\n", " ").replace("\r", " ")


def _write(data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(_STDOUT, remaining) :]


async def _show_table(client: Client, request: _Request) -> None:
    # Imported here, since rich takes longer than the rest together.
    from streamer.cli.table import ListenedServer, show_table  # noqa: PLC0415

    token = None if request.token_file is None else _read_token(request.token_file)
    server = ListenedServer(url=request.url, token=token, ssl_context=request.ssl_context)
    await show_table(client, request.topics, count=request.count, server=server)
