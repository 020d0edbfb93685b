"""`streamer replay`: recorded market data, published at its own pace."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from datetime import timedelta
from functools import partial
from importlib.resources import as_file
from itertools import islice
from pathlib import Path
from typing import Final

import attrs
import click
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.mapping_file import load_mapping
from streamer.cli.options import SettingsCommand, with_settings
from streamer.cli.producer import PRODUCER_SETTINGS, open_producer
from streamer.cli.signals import handle_end_signals
from streamer.config import Settings
from streamer.feeds.feed import FeedError, FeedMessage
from streamer.feeds.mapped import mapped_feed
from streamer.feeds.playback import loop, play
from streamer.feeds.recorded import recorded_feed
from streamer.feeds.sample import sample_recordings
from streamer.nursery import open_background_nursery
from streamer.publisher import (
    InvalidPublicationError,
    PublishFailedError,
    Receipt,
)

_HELP: Final = """Publish recorded market data to Redis, at the pace at which it was recorded.

Each FILE, gzipped or plain, is a recording of one symbol's Binance spot streams, as by `streamer
record`; several are merged by time. Trades are published as price updates of stock:SYMBOL, depth as
its order book of ten levels, with every digit of the exchange. A server on the same Redis sends
them to its clients; in three terminals:

\b
  streamer serve
  streamer listen stock:BTCUSDT stock:ETHUSDT
  streamer replay --sample --loop

With --mapping, recordings may be of any feed: the file says which messages become which
publications, as for `streamer relay`.

\b
  streamer replay --speed 10 --loop btcusdt-*.gz
  streamer replay --mapping upbit.toml krw-btc-*.gz

At the end, or on Ctrl-C, a summary on stderr says how much was published. Redis must be reachable
at the start; if it is lost later, messages are held for 30 s.
"""


@click.command("replay", cls=SettingsCommand, help=_HELP)
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--sample",
    is_flag=True,
    help="Play what comes with the package: half a minute of BTCUSDT and ETHUSDT of 2024-08-08.",
)
@click.option(
    "--mapping",
    "mapping_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A mapping of the recordings' messages, in TOML.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="N",
    help="Times the recorded pace; 0 = as fast as Redis takes the messages.",
)
@click.option(
    "--loop",
    "endless",
    is_flag=True,
    help="Begin again at the end, until Ctrl-C. Changes and volumes begin again too.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="End after this many messages.",
)
@with_settings(only=PRODUCER_SETTINGS)
def command(
    settings: Settings,
    files: Sequence[Path],
    *,
    sample: bool,
    mapping_file: Path | None,
    speed: float,
    endless: bool,
    limit: int | None,
) -> int:
    """Publish until the recordings end, or until a signal."""
    with ExitStack() as stack:
        if sample:
            if files or mapping_file is not None:
                raise click.UsageError("--sample is played alone, without FILE and --mapping")
            files = [stack.enter_context(as_file(recording)) for recording in sample_recordings()]
        elif not files:
            raise click.UsageError("Missing argument 'FILE...', or --sample")
        make_feed = (
            partial(recorded_feed, files)
            if mapping_file is None
            else partial(mapped_feed, files, load_mapping(mapping_file))
        )
        return _replay(settings, files, make_feed, speed=speed, endless=endless, limit=limit)


def _replay(
    settings: Settings,
    files: Sequence[Path],
    make_feed: Callable[..., Iterator[FeedMessage]],
    *,
    speed: float,
    endless: bool,
    limit: int | None,
) -> int:
    account = _Account()
    console = Console(stderr=True)
    progress = Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[account]}"),
        console=console,
        disable=not console.is_terminal,
    )
    # Progress is in bytes, since a recording's duration is known only at its end. A pipe has no
    # size.
    total_bytes = sum(path.stat().st_size for path in files)
    bar = progress.add_task("", total=None if endless else total_bytes or None, account=account)
    make_pass = partial(
        make_feed, on_read=partial(progress.advance, bar), on_problem=account.add_problem
    )
    feed = islice(loop(make_pass) if endless else make_pass(), limit)
    try:
        with progress:
            return trio.run(_run, settings, feed, speed, account)
    finally:
        if account.messages:
            click.echo("\n".join([account.summary(), *account.problems]), err=True)


@attrs.define
class _Account:
    """Counts of the messages that Redis has acknowledged."""

    began_seconds: float = attrs.field(factory=time.monotonic)
    messages: int = 0
    unheard: int = 0
    """Messages that no server received."""
    recorded_seconds: float = 0.0
    """Time of the recording up to the last message."""
    problems: dict[str, None] = attrs.field(factory=dict)
    """Texts about parts of the recordings that were not published."""

    def add_problem(self, problem: str) -> None:
        """Note a problem, once over all passes of a loop."""
        self.problems[problem] = None

    def add(self, batch: Sequence[FeedMessage], receipts: Iterable[Receipt | None]) -> None:
        """Count the messages that have a receipt."""
        for message, receipt in zip(batch, receipts, strict=True):
            if receipt is not None:
                self.messages += 1
                self.unheard += not receipt.receivers
                self.recorded_seconds = message.at_seconds

    def __str__(self) -> str:
        """Return the text beside the progress bar."""
        recorded = timedelta(seconds=int(self.recorded_seconds))
        return f"{self.messages:,} messages, {recorded} of the recording"

    def summary(self) -> str:
        """Return the text for the end."""
        elapsed_seconds = time.monotonic() - self.began_seconds
        heard = f"; no server received {self.unheard:,} of them" if self.unheard else ""
        return f"Published {self}, in {elapsed_seconds:.1f} s{heard}"


async def _run(
    settings: Settings, feed: Iterable[FeedMessage], speed: float, account: _Account
) -> ExitCode:
    at_end = False  # unless it is cancelled by a signal
    async with open_background_nursery() as nursery:
        await nursery.start(handle_end_signals, lambda _number: nursery.cancel_scope.cancel())
        await _publish(settings, feed, speed, account)
        at_end = True
    return ExitCode.OK if at_end else ExitCode.INTERRUPTED


async def _publish(
    settings: Settings, feed: Iterable[FeedMessage], speed: float, account: _Account
) -> None:
    async with open_producer(settings, client_name="streamer-replay") as publisher:
        try:
            async with aclosing(play(feed, speed=speed)) as batches:
                async for batch in batches:
                    publications = [(message.channel, message.payload) for message in batch]
                    try:
                        receipts = await publisher.publish_many(publications)
                    except PublishFailedError as error:
                        account.add(batch, error.receipts)
                        raise
                    account.add(batch, receipts)
        except (FeedError, InvalidPublicationError, OSError, PublishFailedError) as error:
            raise CommandError(str(error)) from None
    if not account.messages:
        raise CommandError("nothing to publish: no prices and no order books in these files")
