"""Keep full garbage collections from holding up the event loop.

A full collection visits all objects. With 10,000 clients it takes 470 ms, and Python does one
whenever a quarter more objects have survived: while 10,000 clients connected there were 11 of them,
2.7 s in total, and the longest turn of the loop was 296 ms (43 ms with this module; processor time
of a 2-core machine, Python 3.11).

Connections and publications need none: they are in no cycle once they have ended, so reference
counts free them (tests/edge/test_acceptor.py proves it with the collector disabled). The remaining
cycles (exceptions with tracebacks, HTTP requests) are young when they become garbage, and young
objects are collected as usual. For old garbage there is a full collection once a minute, if there
are few enough connections for it to be short; objects that exist at the start are frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, Protocol

import trio

FULL_COLLECTION_INTERVAL_SECONDS: Final = 60.0
MAX_CONNECTIONS: Final = 500
"""Connections up to which there are full collections. A collection takes 47 µs per connection, so
at most half of the 50 ms that the event loop may pause."""

_NEVER: Final = 2**31 - 1


class Serving(Protocol):
    """The part of a server that counts its clients."""

    @property
    def active_connections(self) -> int:
        """The number of clients connected to this process."""
        ...


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Exempt the objects that exist from collections, for the length of the block.

    For the time before clients can connect: this first collection visits all modules, which takes
    25 to 88 ms, and the one of `keep_collections_short` then only what was made since.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def keep_collections_short(serving: Serving) -> NoReturn:
    """Avoid long collections until cancelled; once per process, when all else has started."""
    thresholds = gc.get_threshold()
    with frozen_objects():
        gc.set_threshold(*thresholds[:2], _NEVER)
        try:
            while True:
                await trio.sleep(FULL_COLLECTION_INTERVAL_SECONDS)
                if serving.active_connections <= MAX_CONNECTIONS:
                    gc.collect()
        finally:
            gc.set_threshold(*thresholds)
