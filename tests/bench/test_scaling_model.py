"""The model of scale: it returns the costs that points were made with, and names what ends it."""

from __future__ import annotations

import attrs
import pytest

from bench.scaling_model import (
    LARGEST_USE,
    WORKERS_PER_MACHINE,
    Demand,
    Model,
    Point,
    errors,
    fit,
    size,
)

MODEL = Model(worker_publication=50e-6, frame=12e-6, publication=30e-6, copy=3e-6)
DEMAND = Demand(100_000, 1000, 0.5, 10_000, 4_000)


def point(publications: float, frames: float, copies: float) -> Point:
    """Return a point that the model describes exactly."""
    one = Point("made", 1, publications, frames, 0, 0, copies)
    return attrs.evolve(
        one, worker_cores=MODEL.worker_cores(one), redis_cores=MODEL.redis_cores(one)
    )


def test_the_costs_are_found_again() -> None:
    """Two loads differ in frames, for the workers, and two in copies, for Redis."""
    points = point(500, 1000, 1), point(500, 10_000, 1), point(500, 10_000, 2)
    found = fit(*points)
    assert attrs.astuple(found) == pytest.approx(attrs.astuple(MODEL))
    for _, workers, redis in errors(found, [*points, point(2000, 7000, 4)]):
        assert (workers, redis) == pytest.approx((1, 1))


def test_points_that_separate_nothing_are_refused() -> None:
    """Twice the same load has no two costs."""
    same = point(500, 1000, 1)
    with pytest.raises(ValueError, match="do not differ"):
        fit(same, same, same)


def test_processor_time_and_descriptors_decide_the_workers() -> None:
    """Each worker has a share of a core, less what it takes to read all publications."""
    busy = size(MODEL, attrs.evolve(DEMAND, frames_per_client=5))
    assert busy.workers == 11  # 500,000 x 12 us / (0.6 - 0.05)
    quiet = size(MODEL, DEMAND)
    assert quiet.workers == 6  # of 19,936 descriptors each
    assert (quiet.machines, quiet.redis_masters) == (1, 1)
    assert size(MODEL, attrs.evolve(DEMAND, clients=10_000_000)).machines > WORKERS_PER_MACHINE


def test_the_limit_that_decides_is_named() -> None:
    """Memory, if a client takes much of it; else the network, if frames cost no time."""
    fat = attrs.evolve(DEMAND, process_bytes=10e6)
    assert size(MODEL, fat).bound_by == "memory"
    fast = attrs.evolve(MODEL, frame=0, worker_publication=0)
    chatty = attrs.evolve(DEMAND, frames_per_client=1000, max_descriptors=1_000_000)
    assert size(fast, chatty).bound_by == "network"


def test_a_feed_that_no_worker_can_read_is_refused() -> None:
    """More workers do not help, since each reads all of it."""
    with pytest.raises(ValueError, match="topics have to be divided"):
        size(MODEL, attrs.evolve(DEMAND, publications=LARGEST_USE / 50e-6))
