"""The messages of a feed, and the error that ends one."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class FeedMessage:
    """A publication and the time when it is due."""

    at_seconds: float
    """Seconds since the feed's start; never less than those of the message before."""
    channel: str
    """The Redis channel, such as `stock:BTCUSDT:price`."""
    payload: bytes
    """One data message as JSON, with `type` and `timestamp` and without `sequence`."""


class FeedError(Exception):
    """A recording is damaged; the text names the file, the line and the problem."""

    def __init__(self, path: Path, line_number: int, problem: str) -> None:
        super().__init__(f"{path}, line {line_number}: {problem}")
        self.path = path
        self.line_number = line_number
