"""One publication: decoded, validated, positioned and encoded once, whoever receives it."""

from __future__ import annotations

from streamer.protocol.topics import Kind


class Publication:
    """A message of a topic's stream, as the bytes that its receivers get.

    A plain class with slots: one is made for each publication, and attrs would add nothing to it.
    """

    __slots__ = ("epoch", "kind", "order", "sequence", "text")

    def __init__(
        self,
        kind: Kind | None,
        sequence: int,
        order: int,
        text: bytes,
        *,
        epoch: str | None = None,
    ) -> None:
        self.kind = kind
        """None: a notice about the stream (a gap, or the last known values after it), which all
        subscribers get as it is."""
        self.epoch = epoch
        """The one that begins with this, which is then a `gap`: no data message, so that it never
        stands in a batch."""
        self.sequence = sequence
        """A notice has that of the position which it leaves its receivers at."""
        self.order = order
        """Place among the publications of all topics: the order inside a batch."""
        self.text = text
        """The JSON object, its `sequence` included."""

    @property
    def merges(self) -> bool:
        """Whether a newer one of its kind may take its place: what happened must all be told."""
        return self.kind is Kind.PRICE or self.kind is Kind.ORDERBOOK

    def text_after(self, previous: int) -> bytes:
        """The JSON for a client whose last message of this topic was `previous`."""
        return b'%b,"previous":%d}' % (self.text[:-1], previous)

    def text_following(self, position: int) -> bytes:
        """The JSON for a client at `position`, which is named where that is not just before."""
        if self.sequence == position + 1 or self.kind is None:
            return self.text
        return self.text_after(position)

    @property
    def snapshot_text(self) -> bytes:
        """The JSON as the last known value."""
        return self.text[:-1] + b',"snapshot":true}'


def conflate(window: list[Publication]) -> list[Publication]:
    """The newest of each kind, and all that may not be merged, in order of publication."""
    newest = {publication.kind: publication for publication in window}
    return [
        publication
        for publication in window
        if not publication.merges or newest[publication.kind] is publication
    ]
