"""Validation of publications, the same for live ones and those of the history."""

from __future__ import annotations

from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.publications import DecodedPublication, decode_publication
from streamer.protocol.topics import Kind, Topic
from streamer.source.report import SourceReport


class Validator:
    """Decodes publications, and rejects those that must not reach clients."""

    def __init__(self, report: SourceReport, *, max_publication_bytes: int) -> None:
        self._report = report
        self._max_publication_bytes = max_publication_bytes

    def decode(self, kind: Kind, key: str | None, payload: bytes) -> DecodedPublication:
        """Decode a publication on a channel of this kind. Raises InvalidPublicationError."""
        if len(payload) > self._max_publication_bytes:
            raise InvalidPublicationError(
                f"{len(payload)} bytes, more than {self._max_publication_bytes}"
            )
        try:
            return decode_publication(kind, key, payload)
        except InvalidPublicationError:
            raise
        except Exception as error:
            raise InvalidPublicationError(f"cannot be read: {error!r}") from error

    def decode_entry(self, topic: Topic, kind: Kind, sequence: int, payload: bytes) -> bytes | None:
        """Return the JSON for clients of a history entry, or None, reported, if it is invalid."""
        try:
            publication = self.decode(kind, topic.key, payload)
        except InvalidPublicationError as error:
            self._report.unreadable(topic, f"history entry {sequence}: {error}")
            return None
        if publication.position is None or publication.position.sequence != sequence:
            self._report.unreadable(topic, f"history entry {sequence} has another position")
            return None
        return publication.text
