"""Let order books and their changes through only where they make a whole book.

Changes that follow a hole would make a wrong book of a right one. A feed's books are therefore
checked by the connection that they come from and, where the mapping names them, by update ids.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import attrs

from streamer.feeds.recording_lines import Origin

MAX_WAITING: Final = 1000
"""Changes of a book that are kept until it comes. It is requested as soon as changes arrive, so it
takes seconds; a book rarely changes more than a hundred times a second."""


@attrs.frozen
class Ids:
    """The update ids of a message; None: the mapping does not name it."""

    last: int | None = None
    first: int | None = None
    previous: int | None = None


@attrs.define
class BookChain:
    """The books and changes of one channel.

    The rules are those of exchanges: a change that the book contains is left out; the first one
    after a book overlaps it or follows it, and each other one follows the one before.

    An exchange may begin to count anew on an open connection, such as after maintenance. Ids that
    go back are then no sign of a book that contains the changes: all later ones would be left out.
    """

    withheld: int = 0
    """Changes so far that could not be published for lack of a book that they follow."""
    holes: int = 0
    """Times so far that updates were missing, so that only another whole book helps."""
    _is_whole: bool = False
    _origin: Origin | None = None
    _last: int | None = None
    """The id of the last update that the published book contains."""
    _seen: int | None = None
    """The id of the last change on this connection, published or not."""
    _older: tuple[Ids, bytes] | None = None
    """A whole book with an id before `_last`, since which no change has come."""
    _waiting: deque[tuple[Ids, bytes]] = attrs.field(factory=deque)

    def whole(self, ids: Ids, payload: bytes, origin: Origin) -> list[bytes]:
        """Take a whole book; return what is to be published."""
        self._note_origin(origin)
        known = self._last if self._is_whole else None
        is_older = known is not None and ids.last is not None and ids.last < known
        if is_older and self._seen is not None:
            # A snapshot that was asked for, and was not needed; or the ids begin anew. The next
            # change shows which.
            self._older = ids, payload
            return []
        newer = [(change, text) for change, text in self._waiting if not _contains(ids, change)]
        if newer and not _follows(ids.last, newer[0][0]):
            self.holes += 1
            return []  # too old: updates between it and the changes are missing
        self.withheld -= len(self._waiting)
        self._waiting.clear()
        self._is_whole, self._last = True, ids.last
        published = [payload]
        for change, text in newer:
            published += self._follow(change, text)
        return published

    def change(self, ids: Ids, payload: bytes, origin: Origin) -> list[bytes]:
        """Take a change; return what is to be published."""
        self._note_origin(origin)
        goes_back = self._seen is not None and ids.last is not None and ids.last < self._seen
        self._seen = ids.last
        older, self._older = self._older, None
        if not goes_back:
            return self._follow(ids, payload)
        if self._is_whole:
            if ids.previous is not None and ids.previous == self._last:
                self._last = ids.last
                return [payload]
            self.lose()
            if older is not None and _follows(older[0].last, ids):
                self._is_whole, self._last = True, ids.last
                return [older[1], payload]
            self.holes += 1
        self._waiting.clear()
        return self._withhold(ids, payload)

    def _follow(self, ids: Ids, payload: bytes) -> list[bytes]:
        """Take a change whose id is beyond those before it."""
        if self._is_whole:
            if _contains(Ids(self._last), ids):
                return []
            if _follows(self._last, ids):
                self._last = ids.last
                return [payload]
            self.holes += 1
            self.lose()
        return self._withhold(ids, payload)

    def _withhold(self, ids: Ids, payload: bytes) -> list[bytes]:
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
        self._waiting.append((ids, payload))
        self.withheld += 1
        return []

    def lose(self) -> None:
        """Forget the book: changes of it are missing."""
        self._is_whole, self._older = False, None
        self._waiting.clear()

    def _note_origin(self, origin: Origin) -> None:
        if origin != self._origin:
            self.lose()
            self._origin, self._seen = origin, None


def _contains(book: Ids, change: Ids) -> bool:
    """Whether a book has all of a change already."""
    return book.last is not None and change.last is not None and change.last <= book.last


def _follows(last: int | None, ids: Ids) -> bool:
    """Whether no update is missing between the update `last` and a change."""
    if last is None or ids.last is None:
        return True
    overlaps = ids.first is not None and ids.first <= last + 1
    if ids.previous is not None:
        # The first change after a book may begin before it.
        return overlaps or ids.previous <= last
    return overlaps or (ids.first is None and ids.last == last + 1)
