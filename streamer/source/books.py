"""Order books of producers that publish changes.

A producer may publish `orderbook_delta`: levels with their new quantity. The base is the last known
order book of the topic, so a change before any whole book, or after a gap, cannot be applied. Then
the book is unknown until a whole one comes: that is announced by a gap, and further changes are
left out. A book that would be crossed, or larger than a publication may be, is refused in the same
way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal

import attrs

from streamer.hub.publication import Publication
from streamer.hub.publishing import Publishing
from streamer.hub.streams import TopicStream
from streamer.protocol.deltas import Content, read_changes, read_content
from streamer.protocol.messages import GapReason, OrderbookUpdate, Position
from streamer.protocol.orderbook import Level, Side, apply_changes, best, level_text, side_checksum
from streamer.protocol.publications import BookChange
from streamer.protocol.topics import Kind
from streamer.source.report import SourceReport


class BookError(Exception):
    """A change cannot be applied; the text says why."""


@attrs.frozen
class Book:
    """An order book, and how far its levels are known."""

    content: Content
    last_bid: Decimal | None = None
    """The worst bid that is known: levels beyond it were dropped. None: all are known."""
    last_ask: Decimal | None = None


class BookKeeper:
    """Makes whole books of changes, for all topics."""

    def __init__(
        self, publishing: Publishing, report: SourceReport, *, max_levels: int, max_book_bytes: int
    ) -> None:
        """`max_levels` levels of each side are kept; changes beyond them are ignored.

        `max_book_bytes` bounds the JSON of a book, since the members of its changes add up.
        """
        self._publishing = publishing
        self._report = report
        self._max_levels = max_levels
        self._max_book_bytes = max_book_bytes
        self._books: dict[TopicStream, tuple[Publication, Book]] = {}
        """The last book that was made of changes, with its publication."""

    def publish(self, stream: TopicStream, change: BookChange, sequence: int | None) -> None:
        """Publish the book after a change, at `sequence` or the next one."""
        at = stream.sequence + 1 if sequence is None else sequence
        try:
            book = self.changed(self._known(stream), change)
            text = self._text(book, at)
        except BookError as error:
            self._report.reject(stream.topic.channel(Kind.ORDERBOOK), str(error))
            self._lose(stream, at)
            return
        self._publishing.publish_positioned(stream, Kind.ORDERBOOK, text, at)
        self._books[stream] = stream.latest[Kind.ORDERBOOK], book

    def rebuilt(
        self, base: tuple[Kind, int, bytes] | None, change: BookChange, sequence: int
    ) -> bytes | None:
        """Return the whole book after a change of a book in the history; None if it has no base."""
        try:
            book = self.changed(None if base is None else read_book(base[2]), change)
            return self._text(book, sequence)
        except BookError:
            return None

    def _text(self, book: Book, sequence: int) -> bytes:
        """Return the JSON of a whole book. Raises BookError if it is too large."""
        text = whole_text(book, sequence)
        if len(text) > self._max_book_bytes:
            raise BookError(f"a book of {len(text)} bytes, more than {self._max_book_bytes}")
        return text

    def forget(self, stream: TopicStream) -> None:
        """Forget the book of a topic that is released."""
        self._books.pop(stream, None)

    def _known(self, stream: TopicStream) -> Book | None:
        latest = stream.latest.get(Kind.ORDERBOOK)
        if latest is None:
            # A history that was read for a client that returned may have it.
            read = (known for known in reversed(stream.history) if known.kind is Kind.ORDERBOOK)
            latest = next(read, None)
        if latest is None:
            return None
        publication, book = self._books.get(stream, (None, None))
        return book if publication is latest else read_book(latest.text)

    def _lose(self, stream: TopicStream, sequence: int) -> None:
        """Announce that the book is unknown; if that is announced already, only skip the change."""
        self._books.pop(stream, None)
        position = Position(stream.epoch, sequence)
        if stream.leaves_out_changes:
            self._publishing.leave_out(stream, sequence)
            return
        others = [
            (kind, known.sequence, known.text)
            for kind, known in stream.latest.items()
            if kind is not Kind.ORDERBOOK
        ]
        self._publishing.start_epoch(stream, GapReason.BOOK_UNKNOWN, position, others)
        stream.book_is_unknown = True

    def changed(self, book: Book | None, change: BookChange) -> Book:
        """Return the book after a change. Raises BookError."""
        if book is None:
            raise BookError("a change of an order book that is not known")
        members, bids, asks, checksum = read_changes(change)
        base = book.content
        assert base.bids is not None and base.asks is not None  # noqa: PT018 - it is a book
        if any(Decimal(quantity) < 0 for _, (_, quantity, _) in (*bids, *asks)):
            raise BookError("a quantity below 0")
        new_bids, last_bid = self._apply(base.bids, bids, book.last_bid, descending=True)
        new_asks, last_ask = self._apply(base.asks, asks, book.last_ask, descending=False)
        if new_bids and new_asks and next(iter(new_bids)) > next(iter(new_asks)):
            raise BookError("the book would be crossed")
        if checksum is not None and checksum != side_checksum(new_bids, new_asks):
            raise BookError("the checksum of the change is not that of the book")
        content = Content(
            {**base.identity, **members.identity},
            {**base.members, **members.members},
            new_bids,
            new_asks,
        )
        return Book(content, last_bid, last_ask)

    def _apply(
        self,
        side: Side,
        changes: Iterable[tuple[Decimal, Level]],
        last: Decimal | None,
        *,
        descending: bool,
    ) -> tuple[Side, Decimal | None]:
        if last is not None:
            changes = [
                change
                for change in changes
                if (change[0] >= last if descending else change[0] <= last)
            ]
        changed = apply_changes(side, changes, descending=descending)
        if len(changed) > self._max_levels:
            changed = best(changed, self._max_levels)
            last = next(reversed(tuple(changed)))
        return changed, last


def read_book(text: bytes) -> Book | None:
    """Read a whole order book; None if its levels are not in order."""
    content = read_content(text, is_book=True)
    return None if content is None else Book(content)


def whole_text(book: Book, sequence: int) -> bytes:
    """Return the JSON of a whole order book."""
    content = book.content
    sides = [
        f'"{name}":[{",".join(map(level_text, side.values()))}]'
        for name, side in (("bids", content.bids), ("asks", content.asks))
        if side is not None
    ]
    members = {**content.identity, **content.members}
    more = [f"{json.dumps(name)}:{text}" for name, text in members.items()]
    parts = [f'"type":"{OrderbookUpdate.type}"', *sides, *more, f'"sequence":{sequence}']
    return f"{{{','.join(parts)}}}".encode()
