"""Renditions: what a subscription with deltas or a depth is sent of a publication.

A publication is rendered once for all clients that hold the same message before it and have the
same options, those in groups and others alike. Subscriptions without these options are not
concerned: they are sent the publication's own text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from streamer.hub.publication import Publication
from streamer.protocol.deltas import Content, cut_book, delta_text, read_content
from streamer.protocol.topics import Kind

_KINDS: Final = frozenset({Kind.PRICE, Kind.ORDERBOOK})
"""The kinds that have deltas."""

MAX_CACHED_BYTES: Final = 8 << 20
"""Texts of publications whose content is kept parsed, and of renditions that are kept. The content
takes some eight times as much as its text. More than this and publications are parsed again."""

Held = dict[Kind, Publication]
"""The last publication of each kind that a client was sent: the bases of its next deltas."""

Value = TypeVar("Value")


class Detail(NamedTuple):
    """How much a subscription is sent of prices and order books.

    A named tuple: it is part of keys that are looked up for each topic of a request.
    """

    delta: bool = False
    """Whether changes are sent instead of whole messages."""
    depth: int | None = None
    """Levels of each side of a book; None: all."""

    def for_kinds(self, kinds: Collection[Kind]) -> Detail:
        """Return the part that matters for these kinds, so that lanes are shared."""
        if not self.delta and self.depth is None:
            return self
        return Detail(
            self.delta and not _KINDS.isdisjoint(kinds),
            self.depth if Kind.ORDERBOOK in kinds else None,
        )


WHOLE: Final = Detail()
"""Whole messages, as producers published them."""


class _Cache(Generic[Value]):
    """Values with a size, of which the least recently used are dropped."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, size_bytes: int, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made if it is not kept."""
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
            return found[0]
        value = make()
        self._values[key] = value, size_bytes
        self._bytes += size_bytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._values.popitem(last=False)[1][1]
        return value


class Renditions:
    """The renditions of all publications of a hub."""

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._contents: _Cache[Content | None] = _Cache(max_bytes)
        self._rendered: _Cache[Publication] = _Cache(max_bytes)

    def render(
        self, publication: Publication, base: Publication | None, detail: Detail
    ) -> Publication:
        """Return what a client that holds `base` of the publication's kind is sent."""
        return self._rendered.get(
            (publication, base, detail),
            len(publication.text),
            lambda: self._make(publication, base, detail),
        )

    def _make(
        self, publication: Publication, base: Publication | None, detail: Detail
    ) -> Publication:
        text = publication.text
        if detail.depth is not None and publication.kind is Kind.ORDERBOOK:
            text = cut_book(text, detail.depth)
        if base is not None:
            delta = self._delta(publication, base, detail.depth)
            if delta is not None and len(delta) < len(text):
                text = delta
        return publication if text is publication.text else publication.with_text(text)

    def _delta(
        self, publication: Publication, base: Publication, depth: int | None
    ) -> bytes | None:
        content = self._content(publication)
        former = self._content(base)
        if content is None or former is None:
            return None
        return delta_text(former.at_depth(depth), content.at_depth(depth), publication.sequence)

    def _content(self, publication: Publication) -> Content | None:
        is_book = publication.kind is Kind.ORDERBOOK
        return self._contents.get(
            publication,
            len(publication.text),
            lambda: read_content(publication.text, is_book=is_book),
        )


class Renderer:
    """Renders the publications of one topic for the subscriptions with one detail."""

    __slots__ = ("_renditions", "detail")

    def __init__(self, renditions: Renditions, detail: Detail) -> None:
        self._renditions = renditions
        self.detail = detail

    def render(self, publication: Publication, held: Held) -> Publication:
        """Return what a client is sent that holds `held`, which is brought up to date."""
        if publication.kind not in _KINDS:
            self.note(publication, held)
            return publication
        base = None if publication.notice else held.get(publication.kind)
        self.note(publication, held)
        return self._renditions.render(publication, base, self.detail)

    def whole(self, publication: Publication) -> Publication:
        """Return a publication as a whole message."""
        return self.render(publication, {})

    def note(self, publication: Publication, held: Held) -> None:
        """Bring `held` up to date: the client has been sent the publication."""
        if publication.epoch is not None:
            held.clear()  # a gap: what the client holds may be out of date
        elif self.detail.delta and publication.kind in _KINDS:
            held[publication.kind] = publication.original

    def held(self, latest: Mapping[Kind, Publication], kinds: Iterable[Kind]) -> Held:
        """Return what a client holds that has been sent the last values of these kinds."""
        if not self.detail.delta:
            return {}
        return {kind: latest[kind] for kind in kinds if kind in latest and kind in _KINDS}
