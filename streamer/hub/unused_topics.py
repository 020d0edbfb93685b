"""Topics without a subscriber, kept for a while since many clients return soon."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from streamer.hub.streams import TopicStream


class UnusedTopics:
    """Unused topics, ordered by the end of their time; bounded in total and per client.

    A client that subscribes to ever more topics and leaves them displaces only its own.
    """

    def __init__(self, *, maximum: int, maximum_per_client: int) -> None:
        self._maximum = maximum
        self._maximum_per_client = maximum_per_client
        # To find the first of a dict takes as long as there were entries before it.
        self._topics: OrderedDict[TopicStream, tuple[float, str | None]] = OrderedDict()
        """Topic -> when its time is over, and the name of the client that left it."""
        self._by_client: dict[str, dict[TopicStream, None]] = {}

    def __len__(self) -> int:
        """How many topics are kept."""
        return len(self._topics)

    def add(
        self, stream: TopicStream, deadline_seconds: float, client: str | None
    ) -> Iterator[TopicStream]:
        """Keep a topic, last in order; remove and yield those for which there is no room.

        `client` is the name of the client that left it, None if no client has held it yet.
        """
        self.discard(stream)
        self._topics[stream] = (deadline_seconds, client)
        if client is not None:
            left = self._by_client.setdefault(client, {})
            left[stream] = None
            if len(left) > self._maximum_per_client:
                yield self._remove(next(iter(left)))
        if len(self._topics) > self._maximum:
            yield self._remove(next(iter(self._topics)))

    def discard(self, stream: TopicStream) -> None:
        """Remove a topic that is used, if it was kept."""
        if stream in self._topics:
            self._remove(stream)

    def take_due(self, now_seconds: float) -> Iterator[TopicStream]:
        """Remove and yield the topics whose time is over."""
        while self._topics:
            stream, (deadline_seconds, _) = next(iter(self._topics.items()))
            if deadline_seconds > now_seconds:
                return
            yield self._remove(stream)

    def _remove(self, stream: TopicStream) -> TopicStream:
        _, client = self._topics.pop(stream)
        if client is not None:
            left = self._by_client[client]
            del left[stream]
            if not left:
                del self._by_client[client]
        return stream
