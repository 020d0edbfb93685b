"""The outcome of publications: a receipt for each, or an error with the receipts so far."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from streamer.protocol.messages import Position


@attrs.frozen
class Receipt:
    """Redis' answer to one publication."""

    position: Position | None
    """Its position in the topic's stream; None if the publisher gives no positions."""
    receivers: int
    """Subscriptions that received it: servers, not their clients."""
    is_repeated: bool = False
    """Whether Redis had published it at an earlier attempt, of which this is the receipt."""


class PublishFailedError(Exception):
    """Redis did not acknowledge every publication of a call.

    `receipts` has one for each that was acknowledged and None for the others, in the order of the
    call; `unacknowledged` has the indexes of the others. An unacknowledged publication may still
    have been published, with only the answer lost. Publishing it again is a new publication.
    """

    def __init__(self, reason: str, receipts: Sequence[Receipt | None]) -> None:
        self.reason = reason
        self.receipts = tuple(receipts)
        self.unacknowledged = tuple(
            index for index, receipt in enumerate(receipts) if receipt is None
        )
        super().__init__(
            f"{len(self.unacknowledged)} of {len(receipts)} not acknowledged: {reason}"
        )


class PublishRefusedError(PublishFailedError):
    """Redis refused publications for a lasting reason (permissions, a key of another type)."""
