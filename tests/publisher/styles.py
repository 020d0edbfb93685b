"""The publishers for threads and for asyncio behind one blocking interface, for tests of both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from streamer.publisher import PublisherStatistics, Receipt
from streamer.publisher import asyncio as asyncio_style
from streamer.publisher import sync as sync_style
from streamer.publisher.destination import Payload


class BlockingPublisher(Protocol):
    """A publisher whose calls block."""

    def publish_many(self, publications: Iterable[tuple[str, Payload]]) -> list[Receipt]:
        """Publish, and wait for the receipts."""

    def statistics(self) -> PublisherStatistics:
        """Return the present state."""


class _OnAsyncio:
    """Runs the event loop while a call is under way."""

    def __init__(self, runner: asyncio.Runner, publisher: asyncio_style.Publisher) -> None:
        self._runner = runner
        self._publisher = publisher
        self.statistics = publisher.statistics

    def publish_many(self, publications: Iterable[tuple[str, Payload]]) -> list[Receipt]:
        """Publish, and wait for the receipts."""
        return self._runner.run(self._publisher.publish_many(publications))


@contextmanager
def open_asyncio_style(url: str, **options: Any) -> Iterator[BlockingPublisher]:
    """Open the publisher for asyncio on an event loop of its own."""
    with asyncio.Runner() as runner:
        opening = asyncio_style.open_publisher(url, **options)
        publisher = runner.run(_call(opening.__aenter__))
        try:
            yield _OnAsyncio(runner, publisher)
        finally:
            runner.run(_call(opening.__aexit__, None, None, None))


async def _call(function: Any, *arguments: Any) -> Any:
    return await function(*arguments)


STYLES: dict[str, Callable[..., AbstractContextManager[BlockingPublisher]]] = {
    "sync": sync_style.open_publisher,
    "asyncio": open_asyncio_style,
}
