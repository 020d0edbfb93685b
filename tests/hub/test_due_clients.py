"""Clients are taken when their time has come, each once."""

from __future__ import annotations

from streamer.hub.due_clients import DueClients
from streamer.hub.outbox import Outbox
from tests.hub.listener import listening
from tests.hub.test_history import House


def taken(due: DueClients) -> list[tuple[float, Outbox]]:
    """All clients in order, each with its time."""
    order = []
    while (seconds := due.due_seconds) is not None:
        order.append((seconds, due.pop()))
    return order


def test_clients_are_taken_in_the_order_of_their_latest_times() -> None:
    """A client that is put again counts with its new time alone."""
    house = House(history_length=0)
    with listening(house.hub) as one, listening(house.hub) as two:
        due = DueClients()
        assert due.put(one.outbox, 1.0)
        assert due.put(two.outbox, 2.0)
        assert not due.put(two.outbox, 2.0)
        assert due.put(one.outbox, 3.0)
        assert taken(due) == [(2.0, two.outbox), (3.0, one.outbox)]
        assert not due


def test_a_client_whose_time_changes_leaves_little_behind() -> None:
    """A client that asks for ever other rates has ever other times, up to 1,000 s ahead."""
    house = House(history_length=0)
    with listening(house.hub) as one, listening(house.hub) as two:
        due = DueClients()
        due.put(two.outbox, 0.0)
        for seconds in range(1000, 2000):
            due.put(one.outbox, float(seconds))
        assert len(due._heap) <= 104
        assert taken(due) == [(0.0, two.outbox), (1999.0, one.outbox)]


def test_a_client_that_leaves_is_not_taken() -> None:
    """The others still are, and nothing remains of those that left."""
    house = House(history_length=0)
    with listening(house.hub) as one, listening(house.hub) as two:
        due = DueClients()
        for seconds in (5.0, 4.0, 3.0):
            due.put(one.outbox, seconds)
        due.put(two.outbox, 6.0)
        due.discard(one.outbox)
        due.discard(one.outbox)
        assert taken(due) == [(6.0, two.outbox)]
