"""`streamer record`: the messages of any WebSocket feed, to files that `streamer replay` plays."""

import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click
import structlog
import trio

from streamer.cli.connect_options import (
    check_http_urls,
    check_urls,
    ssl_context,
    with_ca,
    with_duration,
)
from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.logs import configure_logging
from streamer.cli.options import SettingsCommand, with_settings
from streamer.cli.signals import handle_end_signals
from streamer.config import Settings
from streamer.feeds.recorder import Recorder, RecordingFiles
from streamer.feeds.websocket import (
    DEFAULT_HEARTBEAT_SECONDS,
    FeedConnectError,
    FeedReader,
    FeedSource,
)
from streamer.nursery import first_of

_HELP: Final = """Record WebSocket feeds, such as those of exchanges, until Ctrl-C.

\b
  streamer record -o btcusdt 'wss://stream.binance.com:9443/stream?streams=btcusdt@trade'
  streamer record -o krw-btc wss://api.upbit.com/websocket/v1 \\
    --subscribe '[{"ticket":"a"},{"type":"trade","codes":["KRW-BTC"]}]'

Each message that is JSON becomes a line: its receive time in ns, and the text as it was received.
Files are gzipped and named PREFIX-20240809T000000Z.gz by the time of their first line; a new one
begins at midnight UTC and at --max-file-bytes. Of several URLs, each has files of its own, with
PREFIX-1, PREFIX-2 and so on.

A connection that is lost is made again, with backoff and full jitter, and recorded as a line of its
own. SIGINT and SIGTERM end the files properly; a recorder that is killed loses the last second, and
leaves files that can be read.
"""


@click.command("record", cls=SettingsCommand, help=_HELP)
@click.argument("urls", metavar="URL...", nargs=-1, required=True, callback=check_urls)
@click.option(
    "-o",
    "--output",
    "prefix",
    type=click.Path(path_type=Path),
    default=Path("recording"),
    show_default=True,
    metavar="PREFIX",
    help="The beginning of the names of the files, with their directory.",
)
@click.option(
    "--subscribe",
    multiple=True,
    metavar="TEXT",
    help="A text to send after each connect; may be given several times.",
)
@click.option(
    "--fetch",
    multiple=True,
    metavar="URL",
    callback=check_http_urls,
    help="An HTTP URL whose answer is recorded once after each connect, such as the snapshot of an "
    "order book; may be given several times.",
)
@click.option(
    "--heartbeat", metavar="TEXT", help="A text to send as a heartbeat, in place of a ping."
)
@click.option(
    "--heartbeat-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_HEARTBEAT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How often. A feed that does not answer for 10 s is connected to anew.",
)
@click.option(
    "--max-file-bytes",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Begin a new file when one has this compressed size.",
)
@with_duration
@with_ca
@with_settings(only=("log_level", "log_format"))
def command(
    settings: Settings,
    urls: Sequence[str],
    *,
    prefix: Path,
    max_file_bytes: int | None,
    duration: float | None,
    ca: Path | None,
    **source: Any,
) -> ExitCode:
    """Record until a signal or the duration ends it."""
    configure_logging(settings.log_level, settings.log_format)
    log = structlog.get_logger("streamer.record")
    context = ssl_context(ca)
    recordings: list[_Recording] = []
    for number, url in enumerate(urls, 1):
        own_prefix = prefix if len(urls) == 1 else prefix.with_name(f"{prefix.name}-{number}")
        files = RecordingFiles(own_prefix, max_file_bytes=max_file_bytes or math.inf)
        recorder = Recorder(files)
        reader = FeedReader(FeedSource(url=url, **source), recorder, log=log, ssl_context=context)
        recordings.append(_Recording(files, recorder, reader))
    try:
        interrupted = trio.run(_run, recordings, duration or math.inf)
    finally:
        click.echo(_summary(recordings), err=True)
    return ExitCode.INTERRUPTED if interrupted and duration is not None else ExitCode.OK


@attrs.frozen
class _Recording:
    """The recording of one URL."""

    files: RecordingFiles
    recorder: Recorder
    reader: FeedReader


async def _run(recordings: Sequence[_Recording], duration_seconds: float) -> bool:
    """Record; return whether a signal has ended it. Raises CommandError."""
    interrupted = False
    failure: CommandError | None = None

    def interrupt(_number: signal.Signals) -> None:
        nonlocal interrupted
        interrupted = True
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(handle_end_signals, interrupt)
            nursery.cancel_scope.deadline = trio.current_time() + duration_seconds
            for recording in recordings:
                nursery.start_soon(recording.reader.run)
                nursery.start_soon(recording.recorder.write_forever)
    except* (FeedConnectError, OSError) as group:
        failure = CommandError(str(first_of(group)))
    for recording in recordings:
        try:
            recording.recorder.close()
        except OSError as error:
            failure = failure or CommandError(str(error))
    if failure is not None:
        raise failure
    return interrupted


def _summary(recordings: Sequence[_Recording]) -> str:
    """Return the counts of all recordings as a line for people."""
    messages = sum(recording.recorder.messages for recording in recordings)
    not_json = sum(recording.recorder.not_json for recording in recordings)
    connections = sum(recording.reader.connections for recording in recordings)
    paths = [path for recording in recordings for path in recording.files.paths]
    written_bytes = sum(recording.files.written_bytes for recording in recordings)
    left_out = f"; {not_json:,} that are no JSON left out" if not_json else ""
    counts = f"Recorded {messages:,} messages ({written_bytes:,} bytes compressed)"
    line = f"{counts}, connections: {connections}{left_out}"
    return "\n".join([line, *map(str, paths)])
