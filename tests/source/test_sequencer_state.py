"""The table of a sequencer's states."""

from __future__ import annotations

import pytest

from streamer.source.sequencer_state import TRANSITIONS, Event, State


@pytest.mark.parametrize("state", State)
def test_each_state_says_what_every_event_means(state: State) -> None:
    """Nothing is allowed once a topic is closed, and no answer while nothing is asked."""
    allowed = TRANSITIONS[state].keys()
    if state is State.CLOSED:
        assert not allowed
    elif state is State.LIVE:
        assert set(Event) - allowed == {Event.OVERFLOWED, Event.READ, Event.PARTLY_READ}
    else:
        assert set(Event) == allowed
