"""The table that `streamer listen` shows on a terminal: one row for each topic."""

import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Final

import attrs
from rich import box
from rich.console import RenderableType
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
    Topic,
)

COLUMNS: Final = ("topic", "last", "change", "volume", "bid", "ask", "sequence", "age")
_STALE_SECONDS: Final = 10.0
"""The age from which it is shown as a warning."""


@attrs.define
class _Row:
    last: str = ""
    change: Decimal | None = None
    change_percent: Decimal | None = None
    volume: str = ""
    bid: str = ""
    ask: str = ""
    sequence: str = ""
    note: str = ""
    updated_seconds: float | None = None

    def show(self, message: Data) -> None:
        match message:
            case PriceUpdate():
                self.last, self.volume = f"{message.price:f}", f"{message.volume:f}"
                self.change, self.change_percent = message.change, message.change_percent
            case OrderbookUpdate():
                self.bid, self.ask = (
                    f"{levels[0].price:f}" if levels else "-"
                    for levels in (message.bids, message.asks)
                )
            case MarketStatus():
                self.last = message.status
            case Alert() | Notification():
                self.last = message.message

    def cells(self, now_seconds: float) -> Iterable[RenderableType]:
        yield self.last
        if self.change is None or self.change_percent is None:
            yield ""
        else:
            style = "green" if self.change > 0 else "red" if self.change < 0 else ""
            yield Text(f"{self.change:+f} ({self.change_percent:+f} %)", style)
        yield from (self.volume, self.bid, self.ask)
        yield Text(self.note, "yellow") if self.note else self.sequence
        if self.updated_seconds is None:
            yield Text("waiting", "dim")
        else:
            age = now_seconds - self.updated_seconds
            yield Text(f"{age:.1f} s", "yellow" if age > _STALE_SECONDS else "")


class Board:
    """The latest values of each topic, as a table."""

    def __init__(
        self, topics: Iterable[Topic], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._rows = {topic: _Row() for topic in topics}

    def show(self, event: Event) -> None:
        """Update the row of a message's topic."""
        if isinstance(event, Gap):
            row = self._rows.get(event.topic)
            if row is not None:
                row.note = f"gap: {event.reason}"
        elif isinstance(event, Data) and event.topic is not None:
            # Messages to the user come without having been asked for.
            row = self._rows.setdefault(event.topic, _Row())
            row.show(event)
            row.sequence, row.note = str(event.sequence), ""
            row.updated_seconds = self._clock()

    def render(self, account: Account, client: ClientStatistics) -> Table:
        """Return the present table, with the account as its caption."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.caption, table.caption_justify = _caption(account, client), "left"
        # On a narrow terminal the names of topics are cut, not the digits of a price.
        table.add_column(COLUMNS[0], overflow="ellipsis")
        for name in COLUMNS[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        now_seconds = self._clock()
        for topic, row in self._rows.items():
            table.add_row(str(topic), *row.cells(now_seconds))
        return table


def _caption(account: Account, client: ClientStatistics) -> Text:
    gaps = sum(account.gaps.values())
    counts = f"received {account.received} · merged {account.merged} · gaps {gaps}"
    caption = Text(counts)
    if account.violations:
        caption.append(f" · violations {account.violations}", "bold red")
    if not client.connected:
        caption.append(f" · reconnecting: {client.last_problem}", "yellow")
    caption.append(" · Ctrl-C ends")
    return caption
