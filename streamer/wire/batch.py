"""From data messages to the frames of one write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from streamer.wire.frames import text_frame

MAX_BATCH_BYTES: Final = 256 * 1024
"""A batch larger than this is sent as several: usual client libraries refuse messages of 1 MiB."""

Part = tuple[int, bytes, bool]
"""Order, JSON and whether it stands outside a batch, of one message of a flush."""


def frame_parts(parts: Sequence[Part], timestamp: Callable[[], str]) -> bytes:
    """The frames of messages in order: one bare, several as a `batch`, a gap always by itself."""
    if len(parts) == 1:
        return text_frame(parts[0][1])
    frames: list[bytes] = []
    texts: list[bytes] = []
    size = 0

    def end_batch() -> None:
        nonlocal texts, size
        if texts:
            frames.append(_data_frame(texts, timestamp))
            texts, size = [], 0

    for _, text, bare in parts:
        if bare:
            end_batch()
            frames.append(text_frame(text))
            continue
        if size + len(text) > MAX_BATCH_BYTES:
            end_batch()
        texts.append(text)
        size += len(text)
    end_batch()
    return b"".join(frames)


def batch_frames(texts: Iterable[bytes], timestamp: Callable[[], str]) -> bytes:
    """The frames of data messages in order; empty where there are none."""
    return frame_parts([(0, text, False) for text in texts], timestamp)


def _data_frame(texts: list[bytes], timestamp: Callable[[], str]) -> bytes:
    if len(texts) == 1:
        return text_frame(texts[0])
    return text_frame(
        b'{"type":"batch","timestamp":"%b","batch_size":%d,"messages":[%b]}'
        % (timestamp().encode(), len(texts), b",".join(texts))
    )
