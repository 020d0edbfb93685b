"""Walks over all clients in parts, and the statistics that are made by one."""

from __future__ import annotations

import pytest

from streamer.hub import hub as hub_module
from streamer.hub.parts import Parts, completed
from streamer.protocol.topics import Kind
from tests.hub.test_history import House
from tests.hub.test_outbox import BOTH, Behind


def walk() -> Parts[str]:
    """Two parts, and a result."""
    yield
    yield
    return "result"


def test_all_parts_are_taken_at_once() -> None:
    """The result is what the walk returns after its last part."""
    assert completed(walk()) == "result"


def test_who_leaves_between_two_parts_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its part has come or not: no counter goes back, and none counts a message twice."""
    monkeypatch.setattr(hub_module, "CLIENTS_PER_PART", 1)
    house = House()
    clients = [Behind(house) for _ in range(3)]
    for client in clients:
        client.subscribe(BOTH, snapshot=False)
        client.publish(Kind.PRICE)
    assert all(client.received() for client in clients)
    delivered = house.hub.statistics().messages_delivered
    assert delivered > 0

    parts = house.hub.statistics_in_parts()
    next(parts)
    next(parts)  # the first one is counted
    house.hub.remove(clients[0].outbox)
    house.hub.remove(clients[2].outbox)
    assert completed(parts).messages_delivered == delivered
    assert house.hub.statistics().messages_delivered == delivered
