"""`streamer relay`: the messages of a feed as publications in Redis, by a mapping."""

import math
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import click
import structlog
import trio

from streamer.bounded_log import BoundedLog
from streamer.cli.connect_options import check_urls, ssl_context, with_ca, with_duration
from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.logs import configure_logging
from streamer.cli.mapping_file import load_mapping
from streamer.cli.options import SettingsCommand, with_settings
from streamer.cli.producer import PRODUCER_SETTINGS, open_producer, with_hold
from streamer.cli.signals import handle_end_signals
from streamer.cli.standard_streams import drop_output
from streamer.config import Settings
from streamer.feeds.mapper import Mapper, Publication, is_change
from streamer.feeds.mapping import FeedMapping
from streamer.feeds.recording_lines import Origin
from streamer.feeds.websocket import FeedConnectError, FeedReader, FeedSource
from streamer.nursery import first_of
from streamer.publisher import (
    InvalidPublicationError,
    PublishFailedError,
    PublishRefusedError,
    Receipt,
)

_HELP: Final = """Publish the messages of WebSocket feeds, such as those of exchanges, to Redis.

MAPPING is a TOML file that says which messages become which publications, and which of their fields
is what; the page docs/how-to/record.md describes it. A [feed] in it names the URL, and the texts to
subscribe with:

\b
  streamer relay binance.toml --redis redis://127.0.0.1:6379
  streamer relay binance.toml --dry-run

Numbers keep the digits of the feed. A message that cannot be mapped is counted and logged, and
costs nothing else. Changes of an order book are published only while they follow a whole one; where
some are missing, the feed is connected to anew. The same mapping lets `streamer replay` play what
`streamer record` has recorded. Ctrl-C ends it, with a summary on stderr.
"""

_MAX_QUEUED: Final = 10_000
"""Publications that wait for Redis; beyond it the feed is not read."""

_BATCH: Final = 128
"""Publications of one pipeline: more would not be cheaper."""

_LAST_WORDS_SECONDS: Final = 5.0
"""How long publications that have been received are still published after a signal."""


@click.command("relay", cls=SettingsCommand, help=_HELP)
@click.argument(
    "mapping_file",
    metavar="MAPPING",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--url",
    "urls",
    multiple=True,
    callback=check_urls,
    metavar="URL",
    help="The feed, in place of the URLs of the mapping; may be given several times.",
)
@click.option(
    "--dry-run", is_flag=True, help="Write publications to stdout instead, one a line; no Redis."
)
@with_hold
@with_duration
@with_ca
@with_settings(only=(*PRODUCER_SETTINGS, "log_level", "log_format"))
def command(
    settings: Settings,
    mapping_file: Path,
    *,
    urls: Sequence[str],
    dry_run: bool,
    hold_seconds: float,
    duration: float | None,
    ca: Path | None,
) -> ExitCode:
    """Relay until a signal or the duration ends it."""
    configure_logging(settings.log_level, settings.log_format)
    mapping = load_mapping(mapping_file)
    if urls:
        like = mapping.sources[0] if mapping.sources else None
        sources = tuple(
            attrs.evolve(like, url=url) if like else FeedSource(url=url) for url in urls
        )
        mapping = attrs.evolve(mapping, sources=sources)
    if not mapping.sources:
        raise click.UsageError(f"{mapping_file} has no [feed], and no --url is given")
    relay = _Relay(mapping, structlog.get_logger("streamer.relay"), ssl_context(ca))
    publishing = _print if dry_run else partial(_publish_to, settings, hold_seconds)
    try:
        interrupted = trio.run(_run, relay, publishing, duration or math.inf)
    finally:
        click.echo(relay.summary(), err=True)
    return ExitCode.INTERRUPTED if interrupted and duration is not None else ExitCode.OK


class _Relay:
    """Feeds, their mapping, and the publications that wait."""

    def __init__(self, mapping: FeedMapping, log: Any, context: Any) -> None:
        self._log = BoundedLog(log.warning)
        self.mapper = Mapper(mapping, on_problem=self._note_problem, on_hole=self._note_hole)
        self.readers = [
            FeedReader(source, _Consumer(self, str(number)), log=log, ssl_context=context)
            for number, source in enumerate(mapping.sources)
        ]
        self._queue: deque[Publication] = deque()
        self._arrival = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._ended = False
        self._receivers: dict[str, int] = {}
        """How many servers received the last publication of each channel."""
        self._mapped = 0
        """Publications that came of messages."""
        self.published = 0
        self.unheard = 0
        """Publications that no server received."""
        self.lost = 0
        """Publications that Redis has not acknowledged."""
        self.refused = 0
        """Publications that do not fit their channel, or that Redis refuses."""

    def _note_problem(self, key: str, reason: str) -> None:
        self._log(f"invalid {key}", "message_invalid", mapping=key, reason=reason)

    def _note_hole(self, channel: str, origin: Origin) -> None:
        self._log("hole", "book_lost", channel=channel)
        self.readers[int(origin.recording)].reconnect(f"updates of {channel} are missing")

    # For the feeds

    async def take(self, message: str | bytes, received_ns: int, origin: Origin) -> None:
        while len(self._queue) >= _MAX_QUEUED:
            await self._room.park()
        publications = self.mapper.map(message, received_ns, origin)
        if publications:
            self._mapped += len(publications)
            self._queue.extend(publications)
            self._arrival.unpark_all()

    # For the publisher

    async def next_batch(self, largest: int = _BATCH) -> list[Publication]:
        """Return publications that wait; none at the end."""
        while not self._queue and not self._ended:
            await self._arrival.park()
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), largest))]
        self._room.unpark_all()
        return batch

    def put_back(self, batch: Sequence[Publication]) -> None:
        """Let publications wait again, before all others: nothing of them was sent."""
        self._queue.extendleft(reversed(batch))

    def end(self) -> None:
        """Let the publisher end once nothing waits."""
        self._ended = True
        self._arrival.unpark_all()

    def count(self, batch: Sequence[Publication], receipts: Sequence[Receipt | None]) -> None:
        for (channel, _), receipt in zip(batch, receipts, strict=True):
            if receipt is None:
                continue
            self.published += 1
            self.unheard += not receipt.receivers
            if receipt.receivers > self._receivers.get(channel, receipt.receivers):
                # A server has just begun to read it. It may have no book to apply changes to.
                self.mapper.renew_book(channel)
            self._receivers[channel] = receipt.receivers

    def refuse(self, publication: Publication, reason: str, *, is_invalid: bool = False) -> None:
        """Take note of a publication that will never be published.

        `is_invalid`: no Redis would take it, so that a book with the same levels would not help.
        """
        channel, _ = publication
        self.refused += 1
        self._log("refused", "publication_refused", channel=channel, reason=reason)
        self.lost += self._forget_changes(channel)
        book = self.mapper.kept_book(channel)
        if is_change(publication):
            if book is not None and book.is_refused:
                return  # it followed that book, and another one will be published
            what = "a change"
        elif book is None:
            self.mapper.lose_books(channel)
            return  # nothing on this channel needs the publication before it
        else:
            is_spoilt = book.is_spoilt
            book.refuse()
            if not (is_invalid and is_spoilt):
                return
            what = "the book"
        self.mapper.lose_books(channel)
        for reader in self.readers:
            reader.reconnect(f"{what} of {channel} was refused")

    def _forget_changes(self, channel: str | None = None) -> int:
        """Drop changes of books that wait, since they would follow a hole; return how many."""
        kept = [
            publication
            for publication in self._queue
            if channel not in {None, publication[0]} or not is_change(publication)
        ]
        dropped = len(self._queue) - len(kept)
        self._queue = deque(kept)
        return dropped

    def lose(self, count: int, reason: str) -> None:
        """Take note of publications that are lost; books that they changed are wrong now."""
        count += self._forget_changes()
        self.lost += count
        self._log("lost", "publications_lost", count=count, reason=reason)
        self.mapper.lose_books()
        for reader in self.readers:
            reader.reconnect("publications were lost")

    def summary(self) -> str:
        """Return the counts as a line for people."""
        counts = self.mapper.counts
        parts = [
            f"Received {counts.messages:,} messages over {self._connections} connections",
            f"published {self.published:,}",
        ]
        for count, text in (
            (self.unheard, "no server received {:,} of them"),
            (counts.ignored, "{:,} messages are not in the mapping"),
            (counts.invalid, "{:,} invalid"),
            (counts.withheld, "{:,} changes of order books withheld"),
            (self.refused, "{:,} refused"),
            (self.lost, "{:,} lost"),
            (self._unsettled, "{:,} not acknowledged at the end"),
        ):
            if count:
                parts.append(text.format(count))
        return "; ".join(parts)

    @property
    def _unsettled(self) -> int:
        return self._mapped - self.published - self.refused - self.lost

    @property
    def _connections(self) -> int:
        return sum(reader.connections for reader in self.readers)


class _Consumer:
    """The receiver of one feed's messages."""

    def __init__(self, relay: _Relay, number: str) -> None:
        self._relay = relay
        self._origin = Origin(number, 0)

    def connected(self, connection: int) -> None:
        self._origin = attrs.evolve(self._origin, connection=connection)

    async def take(self, message: str | bytes, received_ns: int) -> None:
        await self._relay.take(message, received_ns, self._origin)


_Publishing = Callable[[_Relay], Awaitable[None]]


async def _run(relay: _Relay, publishing: _Publishing, duration_seconds: float) -> bool:
    """Relay; return whether a signal has ended it. Raises CommandError."""
    interrupted = False
    failure: CommandError | None = None
    reading = trio.CancelScope()

    def interrupt(_number: signal.Signals) -> None:
        nonlocal interrupted
        if interrupted or reading.cancel_called:
            nursery.cancel_scope.cancel()
        interrupted = True
        reading.cancel()

    async def read_feeds() -> None:
        with reading:
            reading.deadline = trio.current_time() + duration_seconds
            async with trio.open_nursery() as feeds:
                for reader in relay.readers:
                    feeds.start_soon(reader.run)
        nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS_SECONDS
        relay.end()

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(handle_end_signals, interrupt)
            async with trio.open_nursery() as working:
                working.start_soon(publishing, relay)
                working.start_soon(read_feeds)
            nursery.cancel_scope.cancel()
    except* BrokenPipeError:
        drop_output()  # the reader of a dry run has seen enough, as `head` has
    except* (FeedConnectError, CommandError, OSError) as group:
        failure = CommandError(str(first_of(group)))
        if isinstance(cause := first_of(group), CommandError):
            failure = cause
    if failure is not None:
        raise failure
    return interrupted


async def _print(relay: _Relay) -> None:
    while batch := await relay.next_batch():
        for channel, payload in batch:
            click.echo(b"%s %s" % (channel.encode(), payload))
        relay.published += len(batch)


async def _publish_to(settings: Settings, hold_seconds: float, relay: _Relay) -> None:
    async with open_producer(
        settings, client_name="streamer-relay", hold_seconds=hold_seconds
    ) as publisher:
        singly = 0
        while batch := await relay.next_batch(1 if singly else _BATCH):
            singly = max(0, singly - 1)
            try:
                relay.count(batch, await publisher.publish_many(batch))
            except InvalidPublicationError as error:
                if len(batch) == 1:
                    relay.refuse(batch[0], str(error), is_invalid=True)
                else:
                    # Nothing of the batch was sent: one by one, to find those that are invalid.
                    # Changes that would follow one of these are dropped, as all that wait are.
                    relay.put_back(batch)
                    singly = len(batch)
            except PublishFailedError as error:
                _count_failure(relay, batch, error)


def _count_failure(
    relay: _Relay, publications: Sequence[Publication], error: PublishFailedError
) -> None:
    relay.count(publications, error.receipts)
    if isinstance(error, PublishRefusedError):
        for index in error.unacknowledged:
            relay.refuse(publications[index], str(error))
    else:
        relay.lose(len(error.unacknowledged), str(error))
