"""Cursors of event streams: the positions of all topics of a stream, in one opaque text.

A browser keeps only the `id` of the last event and sends it when it reconnects, so each id has to
name every topic of the stream, not just that of its own event. It has no state on the server: any
server of the same Redis can resume the stream, after a restart too.

A cursor is the version and one entry for each topic, joined by `~`:

    1~TAG17a.0f3c9d2e-5~TAG0._7Zmg

- TAG: 8 characters for the topic, 48 bits of a digest of its name. Names would make up most of a
  cursor, which is sent with every event.
- the sequence in hexadecimal, and a dot,
- the epoch, or `_` and the epoch in base64 if it has other characters than usual ones. Nothing at
  all where the client is owed a gap: it will be sent one when it resumes.

Only characters are used that need no escape in a URL, a header or an event.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic
from streamer.wire.format import Placed

MAX_TOPICS: Final = 128
"""Topics of a cursor: more would not fit into its bytes with usual epochs."""

MAX_CURSOR_BYTES: Final = 6 * 1024
"""The longest cursor: usual proxies take a header line of 8 KiB at most."""

OWED_GAP: Final = Position("\0", 0)
"""The position of a client that is owed a gap: no stream has its epoch, so it cannot be resumed."""

_VERSION: Final = "1"
_SEPARATOR: Final = "~"
_OWED: Final = "0."
_USUAL_EPOCH: Final = re.compile(r"[0-9A-Za-z.-]+")
_ENTRY: Final = re.compile(r"([\w-]{8})([0-9a-f]{1,14})\.([0-9A-Za-z.-]*|_[\w-]*)", re.ASCII)
_TAG_BYTES: Final = 6
_CACHED_TAGS: Final = 10_000


def encode_cursor(positions: Iterable[Placed]) -> str:
    """Return the cursor of a client that is at these positions.

    If it would be too long, as with epochs of many characters, the client is owed a gap in the
    topics for which there is no room.
    """
    return join_entries([entry(*placed) for placed in positions])


def join_entries(entries: Iterable[str]) -> str:
    """Return the cursor of these entries, as `encode_cursor` does of their positions."""
    entries = [_VERSION, *entries]
    cursor = _SEPARATOR.join(entries)
    return cursor if len(cursor) <= MAX_CURSOR_BYTES else _shortened(entries)


def entry(topic: Topic, epoch: str | None, sequence: int) -> str:
    """Return the entry of a topic."""
    return f"{_tag(topic)}{_OWED if epoch is None else f'{sequence:x}.{_epoch_text(epoch)}'}"


@lru_cache(maxsize=_CACHED_TAGS)
def _tag(topic: Topic) -> str:
    digest = hashlib.blake2b(str(topic).encode(), digest_size=_TAG_BYTES)
    return urlsafe_b64encode(digest.digest()).decode()


@lru_cache(maxsize=_CACHED_TAGS)
def _epoch_text(epoch: str) -> str:
    if _USUAL_EPOCH.fullmatch(epoch):
        return epoch
    return "_" + urlsafe_b64encode(epoch.encode()).decode().rstrip("=")


def _shortened(entries: list[str]) -> str:
    """Return the cursor in which as many of the last entries as necessary owe a gap."""
    surplus = sum(map(len, entries)) + len(entries) - 1 - MAX_CURSOR_BYTES
    for index in range(len(entries) - 1, 0, -1):
        if surplus <= 0:
            break
        owed = entries[index][:8] + _OWED
        surplus -= len(entries[index]) - len(owed)
        entries[index] = owed
    return _SEPARATOR.join(entries)


def decode_cursor(text: str, topics: Collection[Topic]) -> dict[Topic, Position]:
    """Return the positions that a cursor has for these topics; a topic may have none.

    `OWED_GAP` for one that is owed a gap. Entries of other topics are ignored, so a stream may be
    resumed with more topics or fewer. Raises ValueError with a text for people.
    """
    if len(text) > MAX_CURSOR_BYTES:
        raise ValueError(f"a cursor has at most {MAX_CURSOR_BYTES} characters")
    version, *entries = text.split(_SEPARATOR)
    if version != _VERSION or len(entries) > MAX_TOPICS:
        raise ValueError("it is no cursor of this server: send the id of an event as it came")
    by_tag = {_tag(topic): topic for topic in topics}
    positions: dict[Topic, Position] = {}
    tags: set[str] = set()
    for entry in entries:
        matched = _ENTRY.fullmatch(entry)
        if matched is None or matched[1] in tags:
            raise ValueError("it is no cursor of this server: send the id of an event as it came")
        tags.add(matched[1])
        position = _position(matched[2], matched[3])
        if (topic := by_tag.get(matched[1])) is not None:
            positions[topic] = position
    return positions


def _position(sequence: str, epoch: str) -> Position:
    if not epoch:
        return OWED_GAP
    if epoch.startswith("_"):
        encoded = epoch[1:]
        try:
            epoch = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("a cursor has an epoch that is not text") from None
    return Position(epoch, int(sequence, 16))
