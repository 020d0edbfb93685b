"""How often each topic is published to, from the sequences that the hub counts anyway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import trio

from streamer.hub.streams import TopicStream
from streamer.protocol.topics import Topic

_INTERVAL_SECONDS: Final = 15.0
"""Between two looks at all sequences: a rate is over one to two of them."""

_TOPICS_PER_TURN: Final = 1000
"""Topics looked at in one turn of the loop: less than a millisecond."""

_Mark = tuple[float, str, int]
"""When a topic was looked at, its epoch, and its sequence."""


class TopicActivity:
    """Looks at the sequences of all topics now and then; publications cost nothing more."""

    def __init__(
        self, streams: Mapping[Topic, TopicStream], clock: Callable[[], float] = trio.current_time
    ) -> None:
        """`streams` are the hub's; `clock` gives seconds."""
        self._streams = streams
        self._clock = clock
        self._older: dict[Topic, _Mark] = {}
        self._newer: dict[Topic, _Mark] = {}

    async def run(self) -> NoReturn:
        """Look at the topics until cancelled."""
        while True:
            await trio.sleep(_INTERVAL_SECONDS)
            marks: dict[Topic, _Mark] = {}
            for number, (topic, stream) in enumerate(tuple(self._streams.items()), 1):
                marks[topic] = (self._clock(), stream.epoch, stream.sequence)
                if number % _TOPICS_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            self._older, self._newer = self._newer, marks

    def rate(self, stream: TopicStream) -> float | None:
        """Return the publications of a topic a second; None while it is not known long enough."""
        mark = self._older.get(stream.topic) or self._newer.get(stream.topic)
        if mark is None:
            return None
        seconds, epoch, sequence = mark
        elapsed_seconds = self._clock() - seconds
        if epoch != stream.epoch or elapsed_seconds < 1:
            return None
        return max(0, stream.sequence - sequence) / elapsed_seconds
