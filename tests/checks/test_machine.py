"""The limit of open files against the most clients."""

import pytest

from streamer.checks.finding import Level
from streamer.checks.machine import check_descriptors, hard_descriptor_limit


@pytest.mark.parametrize(
    ("limit", "max_connections", "level"),
    [
        (1024, 1000, Level.FAULT),  # there is more to open than clients
        (1100, 1000, Level.OK),
        (1024, 0, Level.WARNING),
        (65_536, 0, Level.OK),
        (-1, 1_000_000, Level.OK),  # unlimited
    ],
)
def test_each_client_needs_a_descriptor(limit: int, max_connections: int, level: Level) -> None:
    """More clients than descriptors is a fault; few, without a limit of clients, a warning."""
    assert check_descriptors(limit, max_connections).level is level


def test_the_limit_is_that_of_this_process() -> None:
    """It is a number of descriptors, or negative."""
    assert isinstance(hard_descriptor_limit(), int)
