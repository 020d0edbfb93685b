"""Open and close topics on demand, and recover the publications that clients have missed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NoReturn

import structlog
import trio

from streamer.hub.publishing import Publishing
from streamer.hub.upstream import Recovery, RecoveryOutcome
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic
from streamer.source.demand import Joined, Released, TopicDemand, Wanted
from streamer.source.missed import MissedReads
from streamer.source.positions import Bus, PositionReader, channels_of
from streamer.source.reads import TopicReads
from streamer.source.router import Router
from streamer.source.sequencer import Sequencer
from streamer.source.sequencer_state import State

_PATIENCES: Final = 4
"""How often a client's wait may take its whole time, if Redis answers other questions meanwhile."""

log = structlog.get_logger()


class TopicSource:
    """The source as the sessions see it (`streamer.hub.upstream.Source`)."""

    def __init__(
        self,
        publishing: Publishing,
        demand: TopicDemand,
        router: Router,
        bus: Bus,
        *,
        reads: TopicReads,
        positions: PositionReader | None,
        subscribe_timeout_seconds: float,
    ) -> None:
        """`positions` is None if none are stored, as with the bus inside the process."""
        self._demand = demand
        self._router = router
        self._reads = reads
        self._bus = bus
        self._positions = positions
        self._missed = None if positions is None else MissedReads(publishing, router, positions)
        self._subscribe_timeout_seconds = subscribe_timeout_seconds

    async def run(self) -> NoReturn:
        """Open and close topics as they are wanted."""
        while True:
            await self._demand.wait()
            self.follow_demand()

    def follow_demand(self) -> None:
        """Open and close topics for the demand recorded up to now."""
        for change in self._demand.take():
            match change:
                case Wanted(stream):
                    self._router.open(stream)
                    self._bus.subscribe(channels_of(stream.topic))
                case Joined(topic):
                    self._router.join(topic)
                case Released(topic):
                    self._router.close(topic)
                    self._bus.unsubscribe(channels_of(topic))

    def prepare_nowait(
        self, topics: Collection[Topic], since: Mapping[Topic, Position]
    ) -> dict[Topic, Recovery] | None:
        """See `streamer.hub.upstream.Source`."""
        self.follow_demand()
        self._check_positions_ahead(since)
        if not self._are_ready(topics, since) or self._missed_since(since):
            return None
        return {topic: self._recovery(topic, None, at) for topic, at in since.items()}

    async def prepare(
        self, topics: Collection[Topic], since: Mapping[Topic, Position]
    ) -> dict[Topic, Recovery]:
        """See `streamer.hub.upstream.Source`."""
        self.follow_demand()
        self._check_positions_ahead(since)
        answers: dict[Topic, Position] = {}
        for _ in range(_PATIENCES):
            asked: Mapping[Topic, Position] = {}
            began_seconds = trio.current_time()
            with trio.move_on_after(self._subscribe_timeout_seconds) as patience:
                await self._wait_ready(topics, since)
                asked = self._missed_since(since)
                if asked and self._missed is not None:
                    answers = await self._missed.read(asked)
            # Without a position it can miss nothing: a later gap serves it better than no answer.
            if not patience.cancelled_caught or not since or self._positions is None:
                break
            if self._positions.answered_seconds < began_seconds:
                if asked:
                    self._positions.note_failure()
                break
            # Redis answers: a storm of clients is what takes so long, and this one has its turn.
        self.follow_demand()
        return {
            topic: self._recovery(topic, answers.get(topic), position)
            for topic, position in since.items()
        }

    def forbidden(self, topics: Iterable[Topic]) -> list[Topic]:
        """See `streamer.hub.upstream.Source`."""
        if not self._bus.refuses_some:
            return []
        is_refused = self._bus.is_refused
        return [topic for topic in topics if any(map(is_refused, channels_of(topic)))]

    def _recovery(self, topic: Topic, answer: Position | None, since: Position) -> Recovery:
        sequencer = self._router.sequencer(topic)
        position = since if answer is None else answer
        if sequencer is None:
            outcome = RecoveryOutcome.UNAVAILABLE
        elif self._is_known(sequencer, position):
            outcome = RecoveryOutcome.RECOVERED
        elif self._is_live(sequencer) and (answer is not None or not sequencer.positioned):
            outcome = RecoveryOutcome.EXPIRED
        else:
            outcome = RecoveryOutcome.UNAVAILABLE
        return Recovery(outcome, position)

    # Readiness of topics

    async def _wait_ready(self, topics: Collection[Topic], since: Mapping[Topic, Position]) -> None:
        """Wait until no publication to these topics can be missed.

        While the source is away, only topics with a position that only the source knows are waited
        for: a subscription with a later gap serves a client better than no answer.
        """
        while not self._are_ready(topics, since):
            await self._reads.wait_progress()

    def _are_ready(self, topics: Collection[Topic], since: Mapping[Topic, Position]) -> bool:
        for topic in topics:
            sequencer = self._router.sequencer(topic)
            if not (
                sequencer is None
                or sequencer.state is State.LIVE
                or self._may_go_on(sequencer, since.get(topic))
            ):
                return False
        return True

    def _may_go_on(self, sequencer: Sequencer, since: Position | None) -> bool:
        """Whether a client need not wait until a topic is live."""
        if since is None:
            return not self._bus.connected
        return self._is_known(sequencer, since)

    def _is_live(self, sequencer: Sequencer) -> bool:
        return sequencer.state is State.LIVE

    def _is_known(self, sequencer: Sequencer, since: Position) -> bool:
        return sequencer.stream.count_missed(since) is not None

    def _check_positions_ahead(self, since: Mapping[Topic, Position]) -> None:
        """Read topics again if a client has received more of them: another server was faster."""
        for topic, position in since.items():
            sequencer = self._router.sequencer(topic)
            if sequencer is not None and sequencer.positioned:
                stream = sequencer.stream
                if position.epoch == stream.epoch and position.sequence > stream.sequence:
                    sequencer.doubt()

    # Missed publications

    def _missed_since(self, since: Mapping[Topic, Position]) -> Mapping[Topic, Position]:
        """Return the positions after which only Redis may have the history."""
        if self._positions is None or self._positions.failing:
            return {}
        return {
            topic: position
            for topic, position in since.items()
            if (sequencer := self._router.sequencer(topic)) is not None
            and sequencer.positioned
            and self._is_live(sequencer)
            and not self._is_known(sequencer, position)
        }
