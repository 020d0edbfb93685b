"""The table that `streamer listen` shows on a terminal: one row for each stock and market."""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

import attrs
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streamer.client import (
    Account,
    Alert,
    ClientStatistics,
    Data,
    Event,
    Gap,
    MarketStatus,
    Notification,
    OrderbookUpdate,
    PriceUpdate,
    SubscriptionType,
    Topic,
)

_STALE_SECONDS: Final = 10.0
"""The age from which it is shown as a warning."""

_GAP: Final = 2
"""Spaces between two columns."""

_LEAST_NAME: Final = 6
"""Characters of a name below which it is left out rather than cut."""

_MAX_LABEL: Final = 64
"""Characters of the code of a stock that are shown: in a sector, a producer may write any text."""

_MAX_NUMBER: Final = 40
"""Characters of a number that its column is made wide enough for: a freak one would leave no room
for the topics of all rows."""

_CUT: Final = "…"

_UNSEEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+"
)
"""Control characters, those that change the direction of text, and lone surrogates: a producer must
not command the terminal, nor begin another row."""

_MAX_NOTES: Final = 3
"""Lines about gaps and about topics without publications: the rows need the screen."""

_AGE_UNITS: Final = ((60.0, "s"), (60.0, "min"), (24.0, "h"), (365.0, "d"), (float("inf"), "y"))


@attrs.frozen
class Column:
    """A column: its heading, and how soon it is left out on a narrow screen."""

    name: str
    priority: int
    """The lowest is left out first. Columns with 0 never are: a table without them says nothing."""


COLUMNS: Final = (
    Column("topic", 0),
    Column("name", 6),
    Column("last", 0),
    Column("change", 4),
    Column("%", 7),
    Column("volume", 2),
    Column("bid", 5),
    Column("ask", 5),
    Column("sequence", 1),
    Column("age", 8),
)

_NAME: Final = 1
"""The index of the only column that may be cut, beside the topic."""

_LAST: Final = 2
"""The index of the only column of numbers that is never left out."""


@attrs.define
class _Row:
    label: str
    name: str = ""
    last: str = ""
    is_text: bool = False
    """Whether `last` is a text, which may be cut, and not a number."""
    change: Decimal | None = None
    change_percent: Decimal | None = None
    volume: str = ""
    bid: str = ""
    ask: str = ""
    sequence: str = ""
    published_seconds: float | None = None
    """The message's own time, in seconds since the Unix epoch."""

    def show(self, message: Data) -> None:
        match message:
            case PriceUpdate():
                self.last, self.volume = f"{message.price:,f}", f"{message.volume:,f}"
                self.change, self.change_percent = message.change, message.change_percent
            case OrderbookUpdate():
                self.bid, self.ask = (
                    f"{levels[0].price:,f}" if levels else "-"
                    for levels in (message.bids, message.asks)
                )
            case MarketStatus():
                self.last, self.is_text = _visible(message.status), True
            case Alert() | Notification():
                self.last, self.is_text = _visible(message.message), True
        name = message.extra.get("name")
        if isinstance(name, str):
            self.name = _visible(name)

    def cells(self, now_seconds: float) -> list[Text]:
        style = ""
        if self.change is not None and self.change:
            style = "green" if self.change > 0 else "red"
        return [
            Text(self.label, overflow="ellipsis"),
            Text(self.name, overflow="ellipsis"),
            Text(self.last, overflow="ellipsis" if self.is_text else None),
            Text("" if self.change is None else f"{self.change:+,f}", style),
            Text("" if self.change_percent is None else f"{self.change_percent:+,f} %", style),
            Text(self.volume),
            Text(self.bid),
            Text(self.ask),
            Text(self.sequence),
            self._age(now_seconds),
        ]

    def _age(self, now_seconds: float) -> Text:
        if self.published_seconds is None:
            return Text("waiting", "dim")
        # A producer's clock may be ahead of this one.
        age = max(0.0, now_seconds - self.published_seconds)
        return Text(age_text(age), "yellow" if age > _STALE_SECONDS else "")


def age_text(seconds: float) -> str:
    """Return an age in a unit that fits it: `0.3 s`, `45 s`, `3 min`, `2 y`."""
    if seconds < 10:  # a tenth of a second is seen to change
        return f"{seconds:.1f} s"
    age = seconds
    for size, unit in _AGE_UNITS:
        if age < size:
            return f"{int(age)} {unit}"
        age /= size
    raise AssertionError("the last unit has no end")  # pragma: no cover


class Board:
    """The latest values of each stock and market, as a table."""

    def __init__(self, topics: Iterable[Topic], *, clock: Callable[[], float] = time.time) -> None:
        """`clock` returns seconds since the Unix epoch."""
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        """By topic: that of a stock also where its price came by another one, such as a sector."""
        self._members: dict[Topic, dict[str, None]] = {topic: {} for topic in topics}
        """The rows of each topic; none before its first message."""
        self._gaps: dict[Topic, str] = {}
        self.hints: Sequence[str] = ()
        """Lines about topics that have no publications."""

    @property
    def silent(self) -> list[Topic]:
        """The topics of which no message has been shown."""
        return [topic for topic, members in self._members.items() if not members]

    def show(self, event: Event) -> None:
        """Update the row of a message's subject."""
        if isinstance(event, Gap):
            self._gaps[event.topic] = event.reason
            return
        if not isinstance(event, Data) or event.topic is None:
            return
        topic = event.topic
        self._gaps.pop(topic, None)
        is_of_stock = isinstance(event, PriceUpdate | OrderbookUpdate)
        # The code need not be that of a topic: a sector's messages may name anything.
        subject = f"{SubscriptionType.STOCK}:{event.about}" if is_of_stock else str(topic)
        label = _visible(str(event.about))[:_MAX_LABEL] if is_of_stock else _label(topic)
        # Messages to the user come without having been asked for.
        self._members.setdefault(topic, {})[subject] = None
        row = self._rows.setdefault(subject, _Row(label))
        published_seconds = _unix_seconds(event.timestamp)
        if published_seconds is None:
            published_seconds = self._clock()
        elif event.snapshot and published_seconds < (row.published_seconds or 0):
            return  # the last value of one topic, older than what came by another
        row.show(event)
        row.sequence = f"{event.sequence:,}"
        row.published_seconds = published_seconds

    def _ordered(self) -> list[_Row]:
        """The rows in the order of the topics, each once."""
        rows: dict[str, _Row] = {}
        for topic, members in self._members.items():
            if not members:
                rows.setdefault(str(topic), self._rows.get(str(topic)) or _Row(_label(topic)))
            for subject in members:
                rows.setdefault(subject, self._rows[subject])
        return list(rows.values())

    def render(
        self,
        account: Account,
        client: ClientStatistics,
        *,
        width: int,
        height: int | None = None,
        offset: int = 0,
    ) -> RenderableType:
        """Return the present table for a screen, with the account below it.

        `height` None: all rows; otherwise those from `offset` on that fit.
        """
        rows = self._ordered()
        notes = self._notes()
        shown = rows
        footer = _caption(account, client)
        if height is not None:
            room = max(1, height - 2 - len(notes))
            offset = self.clamped(offset, room)
            shown = rows[offset : offset + room]
            if len(shown) < len(rows):
                place = f" · rows {offset + 1}-{offset + len(shown)} of {len(rows)}: ↑ ↓"
                footer.append(place)
        footer.append(" · Ctrl-C ends")
        table = _table(rows, shown, self._clock(), width)
        lines = [Text(note, "yellow") for note in notes] + [footer]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Group(table, *lines)

    def clamped(self, offset: int, room: int) -> int:
        """Return the nearest offset at which `room` rows are filled."""
        return max(0, min(offset, len(self._ordered()) - room))

    def room(self, height: int) -> int:
        """Return how many rows a screen has room for."""
        return max(1, height - 2 - len(self._notes()))

    def _notes(self) -> list[str]:
        gaps = [f"{topic}: gap, {reason}" for topic, reason in self._gaps.items()]
        return [*gaps, *self.hints][:_MAX_NOTES]


def _visible(text: str) -> str:
    """Return a producer's text without characters that do something."""
    return _UNSEEN.sub(" ", text)


def _label(topic: Topic) -> str:
    """A stock is known by its code; anything else needs its type."""
    is_stock = topic.subscription_type is SubscriptionType.STOCK
    return topic.target if is_stock else str(topic)


def _unix_seconds(timestamp: str) -> float | None:
    try:
        moment = datetime.fromisoformat(timestamp)
        return moment.timestamp() if moment.tzinfo is not None else None
    except (OverflowError, ValueError):  # with more digits than it reads, for one
        return None


def _table(rows: Sequence[_Row], shown: Sequence[_Row], now_seconds: float, width: int) -> Table:
    # The widths are those of all rows, so that scrolling does not move the columns.
    cells = [[_wanted(cell) for cell in row.cells(now_seconds)] for row in rows]
    widths = [
        max([cell_len(column.name), *(row[index] for row in cells)])
        for index, column in enumerate(COLUMNS)
    ]
    kept = _fitting(
        widths, {index for index in range(len(COLUMNS)) if _is_used(cells, index)}, width
    )
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for index, column in enumerate(COLUMNS):
        if index in kept:
            is_text = index <= _NAME
            table.add_column(
                column.name,
                justify="left" if is_text else "right",
                width=kept[index],
                no_wrap=True,
                overflow="ellipsis" if is_text else "fold",
            )
    for row in shown:
        own = row.cells(now_seconds)
        table.add_row(*(_fitted(own[index], width) for index, width in kept.items()))
    return table


def _wanted(cell: Text) -> int:
    """Return the width that a cell needs: a text that may be cut, or a number."""
    width = cell_len(cell.plain)
    return width if cell.overflow or width <= _MAX_NUMBER else cell_len(_CUT)


def _fitted(cell: Text, width: int) -> Text:
    """Return a cell as it is, or without a number that does not fit: a part is another number."""
    return cell if cell.overflow or cell_len(cell.plain) <= width else Text(_CUT)


def _is_used(cells: Sequence[Sequence[int]], index: int) -> bool:
    return COLUMNS[index].priority == 0 or any(row[index] for row in cells)


def _fitting(widths: Sequence[int], used: set[int], width: int) -> dict[int, int]:
    """Return the columns that fit a screen, with their widths.

    Names are cut before a column is left out, and topics where nothing else is left; a number is
    shown with all digits or not at all.
    """
    kept = {index: widths[index] for index in sorted(used)}

    def excess() -> int:
        return sum(kept.values()) + _GAP * (len(kept) - 1) - width

    for index in sorted(used, key=lambda index: (COLUMNS[index].priority, -index)):
        if _NAME in kept and excess() > 0:
            kept[_NAME] = max(min(kept[_NAME], _LEAST_NAME), kept[_NAME] - excess())
        if excess() <= 0:
            break
        if COLUMNS[index].priority:
            del kept[index]
            if _NAME in kept:
                kept[_NAME] = widths[_NAME]
    for index in (0, _LAST):
        if excess() > 0:
            kept[index] = max(1, kept[index] - excess())
    return kept


def _caption(account: Account, client: ClientStatistics) -> Text:
    gaps = sum(account.gaps.values())
    counts = f"received {account.received:,} · merged {account.merged:,} · gaps {gaps:,}"
    caption = Text(counts)
    if account.violations:
        caption.append(f" · violations {account.violations:,}", "bold red")
    if not client.connected:
        caption.append(f" · reconnecting: {_visible(client.last_problem or '')}", "yellow")
    return caption
