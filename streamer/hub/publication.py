"""One publication: decoded, validated, positioned and encoded once for all receivers."""

from __future__ import annotations

from collections.abc import Iterable

from streamer.protocol.topics import Kind


class Publication:
    """One message of a topic's stream, as the JSON that its receivers are sent.

    A plain class with slots: one is made for each publication, and attrs would add nothing to it.
    """

    __slots__ = ("epoch", "kind", "notice", "order", "sequence", "text")

    def __init__(
        self,
        kind: Kind | None,
        sequence: int,
        order: int,
        text: bytes,
        *,
        epoch: str | None = None,
        notice: bool = False,
    ) -> None:
        self.kind = kind
        """None for a `gap`, which every subscription carries."""
        self.epoch = epoch
        """The epoch that begins with this publication, which is then a `gap`. A gap is no data
        message, so it is never part of a batch."""
        self.notice = notice
        """Whether it is a message of the server about the stream: a `gap`, or a last known value
        after one. It is never merged and its text never changes."""
        self.sequence = sequence
        """Its sequence; for a notice, the sequence at which its receivers are afterwards."""
        self.order = order
        """Its place among the publications of all topics: the order inside a batch."""
        self.text = text
        """The JSON object, its `sequence` included."""

    @property
    def merges(self) -> bool:
        """Whether a newer one of its kind may replace it: states may be merged, events may not."""
        return (self.kind is Kind.PRICE or self.kind is Kind.ORDERBOOK) and not self.notice

    @property
    def is_last_value(self) -> bool:
        """Whether it is a last known value after a gap."""
        return self.notice and self.epoch is None

    @property
    def original(self) -> Publication:
        """The publication whose value it is: another one only if it is a last known value."""
        return self

    def with_text(self, text: bytes) -> Publication:
        """Return the same publication with another text."""
        return Publication(
            self.kind, self.sequence, self.order, text, epoch=self.epoch, notice=self.notice
        )

    def text_after(self, previous: int) -> bytes:
        """The JSON for a client whose last message of this topic was `previous`."""
        return b'%b,"previous":%d}' % (self.text[:-1], previous)

    def text_following(self, position: int) -> bytes:
        """The JSON for a client at `position`, which it names unless it is `sequence - 1`."""
        if self.sequence == position + 1 or self.notice:
            return self.text
        return self.text_after(position)

    @property
    def snapshot_text(self) -> bytes:
        """The JSON as the last known value."""
        return self.text[:-1] + b',"snapshot":true}'


class LastValue(Publication):
    """A notice of a last known value, as sent after a gap."""

    __slots__ = ("_original",)

    def __init__(self, original: Publication, sequence: int, order: int) -> None:
        """`sequence` is that at which the receivers are, and stay."""
        super().__init__(original.kind, sequence, order, original.snapshot_text, notice=True)
        self._original = original

    @property
    def original(self) -> Publication:
        """The publication that had the value."""
        return self._original


def text_bytes(publications: Iterable[Publication]) -> int:
    """Return the size of the texts of publications."""
    return sum(len(publication.text) for publication in publications)


def conflate(window: list[Publication]) -> list[Publication]:
    """Return the newest of each kind and everything that is never merged, in order."""
    newest = {publication.kind: publication for publication in window if publication.merges}
    return [
        publication
        for publication in window
        if not publication.merges or newest[publication.kind] is publication
    ]
