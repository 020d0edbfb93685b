"""Keeps the garbage collector from holding up the event loop.

A full collection visits every object there is. With 10,000 clients it takes 470 ms, and Python does
one whenever a quarter more objects have survived: while 10,000 clients connected there were 11 of
them, 2.7 s in all, and the longest turn of the loop was 296 ms (43 ms with what follows; processor
time of a 2-core machine, Python 3.11).

Nothing needs them. Connections and publications are freed by their reference counts: of 200
clients that had come and gone, a full collection found not one object. The cycles that there are
(exceptions with tracebacks, the statistics page) are young when they die, and young objects are
collected as ever. For what grows old all the same there is a full collection now and then, while it
takes no longer than anything else, since what was there at the start is frozen.
"""

from __future__ import annotations

import gc
from typing import Final, NoReturn, Protocol

import trio

FULL_COLLECTION_INTERVAL_SECONDS: Final = 60.0
MAX_CONNECTIONS: Final = 500
"""A full collection takes 47 µs for each: with these, half of the 50 ms that the loop may pause."""

_NEVER: Final = 2**31 - 1


class Serving(Protocol):
    """The server of this process, as far as its clients are counted."""

    @property
    def active_connections(self) -> int:
        """How many clients are connected."""
        ...


async def keep_collections_short(serving: Serving) -> NoReturn:
    """From now until cancelled, once for a process that has started all that it is made of."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds[:2], _NEVER)
    try:
        while True:
            await trio.sleep(FULL_COLLECTION_INTERVAL_SECONDS)
            if serving.active_connections <= MAX_CONNECTIONS:
                gc.collect()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
