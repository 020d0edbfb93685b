"""From the parts of a write to the JSON texts that carry them: bare messages and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from streamer.wire.format import Part

MAX_BATCH_BYTES: Final = 256 * 1024
"""A batch larger than this is sent as several: usual client libraries refuse messages of 1 MiB."""


def batch_texts(parts: Sequence[Part], timestamp: Callable[[], str]) -> Iterator[bytes]:
    """Yield the JSON texts of messages in order: one bare, several as a `batch`, a gap bare."""
    texts: list[bytes] = []
    size = 0
    for _, text, bare in parts:
        if texts and (bare or size + len(text) > MAX_BATCH_BYTES):
            yield batch_text(texts, timestamp)
            texts, size = [], 0
        if bare:
            yield text
        else:
            texts.append(text)
            size += len(text)
    if texts:
        yield batch_text(texts, timestamp)


def batch_text(texts: Sequence[bytes], timestamp: Callable[[], str]) -> bytes:
    """Return the JSON of a message that is alone, or of a `batch` of several."""
    if len(texts) == 1:
        return texts[0]
    return b'{"type":"batch","timestamp":"%b","batch_size":%d,"messages":[%b]}' % (
        timestamp().encode(),
        len(texts),
        b",".join(texts),
    )
