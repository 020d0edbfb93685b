"""Count the bytes that one client is sent: plain, compressed, as deltas, and both.

The server's own wire formats and renditions make the frames, so these are the bytes on the wire of
a server that is never behind. Unlike in the benchmarks with clients, messages have no marker, and
the load of the machine does not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import mean
from typing import Final

import attrs
import click

from bench.byte_scenarios import BOOKS
from bench.feeds import market_workload
from bench.load import Load
from bench.measure import markdown
from bench.smallest_deflate import smallest_deflate
from streamer.config import Settings
from streamer.feeds.feed import FeedMessage
from streamer.feeds.recorded import recorded_feed
from streamer.feeds.sample import sample_recordings
from streamer.hub.publication import Publication
from streamer.hub.renditions import WHOLE, Detail, Held, Renderer, Renditions
from streamer.protocol.codec import utc_timestamp
from streamer.protocol.publications import decode_publication
from streamer.protocol.topics import Kind, Topic, parse_channel
from streamer.wire.deflate import Compression, Window
from streamer.wire.format import WireFormat
from streamer.wire.json import WebSocketJson

DEFAULT_SECONDS: Final = 20.0
MEMBERS: Final = 1000
"""Clients of the group; a small one would have no window of its own."""
PARSED_MESSAGES: Final = 200
"""Messages whose smallest size is looked for, the last ones: each takes some 50 ms."""


@attrs.frozen
class Stream:
    """Publications that a client receives, with their topics and the seconds at which they come."""

    name: str
    publications: Sequence[tuple[float, Topic, Publication]]


@attrs.frozen
class ByteCount:
    """The bytes per publication of one stream, heads of frames included."""

    name: str
    publications_per_frame: float
    plain: float
    compressed: float
    delta: float
    compressed_delta: float
    smallest_delta: float | None
    """With the shortest DEFLATE that there is instead of zlib's; None where frames have several
    publications, so that codes of their own might be shorter than the fixed ones."""


def simulated(kind: Kind, topics: int, rate_per_second: float, seconds: float) -> Stream:
    """Return the publications of the benchmarks: one kind of some topics at a steady rate."""
    load = Load(rate_per_second, seconds, warmup_seconds=0)
    workload = market_workload(kind, load, [list(range(topics))])
    messages = (
        FeedMessage(one.at_ns / 1e9, workload.topics[one.topic].channel, f"{one.head}}}".encode())
        for one in workload.schedule
    )
    what = "one price" if topics == 1 else f"{topics} order books"
    return Stream(f"{what}, {rate_per_second:g}/s", _positioned(messages))


def recorded() -> Stream:
    """Return the trades and order books of the recorded market data that is in the package."""
    feed = recorded_feed([Path(str(path)) for path in sample_recordings()])
    return Stream("recorded: prices and order books of two symbols", _positioned(feed))


def _positioned(messages: Iterable[FeedMessage]) -> list[tuple[float, Topic, Publication]]:
    sequences: Counter[Topic] = Counter()
    publications = []
    for order, message in enumerate(messages):
        topic, kind = parse_channel(message.channel)
        sequences[topic] += 1
        text = decode_publication(kind, topic.key, message.payload).text
        text = b'%b,"sequence":%d}' % (text[:-1], sequences[topic])  # as the hub does
        publication = Publication(kind, sequences[topic], order, text)
        publications.append((message.at_seconds, topic, publication))
    return publications


def count_bytes(stream: Stream, settings: Settings) -> ByteCount:
    """Count the bytes of a stream with the flush interval and the compression of `settings`."""
    clock = _Clock()
    window = Window(settings.compression_window_bits, takeover=True)

    def compressing() -> WireFormat:
        compression = Compression(
            clock.timestamp,
            level=settings.compression_level,
            min_message_bytes=settings.compression_min_bytes,
            min_members=1,
            max_memory_bytes=settings.max_compression_bytes,
        )
        return compression.format(window).for_group(MEMBERS, has_newcomer=False)

    def flushed(detail: Detail) -> list[tuple[float, list[Publication]]]:
        rendered = _rendered(stream.publications, detail)
        return list(_flushes(rendered, settings.flush_interval_ms / 1000))

    whole, deltas = flushed(WHOLE), flushed(Detail(delta=True))
    count = len(stream.publications)

    def per_publication(flushes: list[tuple[float, list[Publication]]], wire: WireFormat) -> float:
        return sum(len(frame) for frame in _frames(flushes, wire, clock)) / count

    plain = WebSocketJson(clock.timestamp)
    is_bare = len(whole) == count
    return ByteCount(
        stream.name,
        count / len(whole),
        per_publication(whole, plain),
        per_publication(whole, compressing()),
        per_publication(deltas, plain),
        per_publication(deltas, compressing()),
        _smallest([texts[0].text for _, texts in deltas], window) if is_bare else None,
    )


class _Clock:
    """The time of a flush, which a batch names."""

    def __init__(self) -> None:
        self.at_seconds = 0.0
        self._random = Random(1)  # repeatable

    def timestamp(self) -> str:
        late_seconds = self._random.random() / 1000  # else it would be the same time in each window
        began = datetime(2024, 8, 9, tzinfo=UTC)
        return utc_timestamp(began + timedelta(seconds=self.at_seconds + late_seconds))


def _rendered(
    publications: Iterable[tuple[float, Topic, Publication]], detail: Detail
) -> Iterator[tuple[float, Publication]]:
    renderer = Renderer(Renditions(), detail)
    held: defaultdict[Topic, Held] = defaultdict(dict)
    for at_seconds, topic, publication in publications:
        yield at_seconds, renderer.render(publication, held[topic])


def _flushes(
    publications: Iterable[tuple[float, Publication]], interval_seconds: float
) -> Iterator[tuple[float, list[Publication]]]:
    """Yield what is sent together: at once after an idle interval, else at its end."""
    pending: list[Publication] = []
    flush_at = -interval_seconds
    for at_seconds, publication in publications:
        if pending and flush_at <= at_seconds:
            yield flush_at, pending
            pending = []
        if not pending:
            flush_at = max(at_seconds, flush_at + interval_seconds)
        pending.append(publication)
    yield flush_at, pending


def _frames(
    flushes: Iterable[tuple[float, list[Publication]]], wire: WireFormat, clock: _Clock
) -> Iterator[bytes]:
    for clock.at_seconds, publications in flushes:
        parts = [(one.order, one.text, False) for one in publications]
        yield wire.data(parts, list)


def _smallest(texts: Sequence[bytes], window: Window) -> float:
    """Return the mean of the smallest frames of the last texts."""
    window_bytes = 1 << window.bits
    begin = max(len(texts) - PARSED_MESSAGES, 0)
    before = b"".join(texts[:begin])[-window_bytes:]
    sizes = []
    for text in texts[begin:]:
        sizes.append(2 + smallest_deflate(text, before))  # the head of a short frame has two bytes
        before = (before + text)[-window_bytes:]
    return mean(sizes)


def table(counts: Iterable[ByteCount]) -> str:
    """Return a Markdown table of the bytes per publication, and their share of the plain ones."""
    head = ["", "publications/frame", "plain", "compressed", "delta", "both", "smallest possible"]
    return markdown([head, *map(_row, counts)])


def _row(count: ByteCount) -> list[str]:
    def cell(size: float | None) -> str:
        return "" if size is None else f"{size:.1f} ({size / count.plain:.1%})"

    sizes = (count.compressed, count.delta, count.compressed_delta, count.smallest_delta)
    frames = f"{count.publications_per_frame:.1f}"
    return [count.name, frames, f"{count.plain:.1f}", *map(cell, sizes)]


@click.command("count-bytes")
@click.option("--seconds", default=DEFAULT_SECONDS, type=click.FloatRange(1, 600))
def command(seconds: float) -> None:
    """Count the bytes per publication that a client is sent: plain, compressed, and as deltas.

    The smallest possible is that of a compressed delta with the shortest DEFLATE there is.
    """
    prices = (simulated(Kind.PRICE, 1, rate, seconds) for rate in (20, 50, 200))
    books = simulated(Kind.ORDERBOOK, BOOKS, 10 * BOOKS, seconds)
    settings = Settings()
    click.echo(table(count_bytes(one, settings) for one in (*prices, books, recorded())))
