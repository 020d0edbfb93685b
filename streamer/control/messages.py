"""The messages of the control channel: JSON, which anybody who may write to Redis can send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs
import cattrs
import orjson

from streamer.protocol.codec import CONVERTER, explain

M = TypeVar("M", "Ask", "Answer")


@attrs.frozen
class Ask:
    """A request to all processes."""

    id: str
    """Unique; the answers have it too."""
    process: str
    """The process that asks, which is sent the answers."""
    action: str
    """A method of `streamer.control.actions.Actions`."""
    arguments: Mapping[str, Any]


@attrs.frozen
class Answer:
    """The answer of one process."""

    id: str
    process: str
    """The process that answers."""
    result: Mapping[str, Any] | None = None
    """The outcome; None if it failed."""
    error: str | None = None


def encode(message: Ask | Answer) -> bytes:
    """Write a message as JSON."""
    return orjson.dumps(CONVERTER.unstructure(message))


def decode(model: type[M], text: bytes, *, max_bytes: int) -> M:
    """Read a message. Raises ValueError for one that is none, or is too large."""
    if len(text) > max_bytes:
        raise ValueError(f"{len(text)} bytes, where {max_bytes} are the most")
    try:
        return CONVERTER.structure(orjson.loads(text), model)
    except cattrs.BaseValidationError as error:
        raise ValueError("; ".join(explain(error)[:3])) from None
