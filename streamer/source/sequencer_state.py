"""The state machine of a sequencer, as a table.

An event that a state does not allow is a bug, and raises `ImpossibleTransition`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class ImpossibleTransition(Exception):  # noqa: N818 - a bug of the caller, named by what it is
    """An event that the state of a topic does not allow."""


class State(enum.Enum):
    """Whether a topic's publications are passed on, and what may be missing if they are not."""

    OPENING = "opening"
    """The position is to be read for the first time, and no client has learned one yet."""
    LIVE = "live"
    """Publications are passed on. In all other states but the last they are held."""
    CHECKING = "checking"
    """The connection lost nothing, but a position was named that is not the next one."""
    RECOVERING = "recovering"
    """Publications may have been missed."""
    CLOSED = "closed"
    """The topic was released."""


class Event(enum.Enum):
    """Events that change a topic's state."""

    JOINED = "joined"
    """A first client learned the position."""
    DOUBTED = "doubted"
    """A publication or a client named a position that is not the next one."""
    LOST = "lost"
    """The connection was lost."""
    OVERFLOWED = "overflowed"
    """The held publications became too many, and were dropped."""
    READ = "read"
    """The position was read, and all up to it is published."""
    PARTLY_READ = "partly read"
    """The position was read, and more has to be read."""
    CLOSED = "closed"
    """The topic was released."""


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    State.OPENING: {
        Event.JOINED: State.RECOVERING,
        Event.DOUBTED: State.OPENING,
        Event.LOST: State.OPENING,
        Event.OVERFLOWED: State.OPENING,
        Event.READ: State.LIVE,
        Event.PARTLY_READ: State.CHECKING,
        Event.CLOSED: State.CLOSED,
    },
    State.LIVE: {
        Event.JOINED: State.LIVE,
        Event.DOUBTED: State.CHECKING,
        Event.LOST: State.RECOVERING,
        Event.CLOSED: State.CLOSED,
    },
    State.CHECKING: {
        Event.JOINED: State.CHECKING,
        Event.DOUBTED: State.CHECKING,
        Event.LOST: State.RECOVERING,
        Event.OVERFLOWED: State.RECOVERING,
        Event.READ: State.LIVE,
        Event.PARTLY_READ: State.CHECKING,
        Event.CLOSED: State.CLOSED,
    },
    State.RECOVERING: {
        Event.JOINED: State.RECOVERING,
        Event.DOUBTED: State.RECOVERING,
        Event.LOST: State.RECOVERING,
        Event.OVERFLOWED: State.RECOVERING,
        Event.READ: State.LIVE,
        Event.PARTLY_READ: State.CHECKING,
        Event.CLOSED: State.CLOSED,
    },
    State.CLOSED: {},
}
