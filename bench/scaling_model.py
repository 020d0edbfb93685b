"""The model of what clients, publications and workers cost, fitted to measured points.

A worker reads each publication of the topics that its clients hold, and writes frames to them:

    processor time of the workers = workers x publications x WORKER_PUBLICATION + frames x FRAME

Redis carries out each publication, and copies it to each worker:

    processor time of Redis = publications x (PUBLICATION + workers x COPY)

Both are linear, so the four constants are fitted to two points each and have to predict the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

LARGEST_USE = 0.6
"""The share of a core that a worker or a Redis should use: the rest is for bursts and storms."""
WORKERS_PER_MACHINE = 14
"""Workers of a machine with 16 cores, which leaves two for the kernel's interrupts."""
MACHINE_BYTES = 64e9
MACHINE_NIC_BITS_PER_SECOND = 25e9
MESSAGE_BYTES = 300
"""A price with its position, on its way from Redis to a worker, heads of packets included."""
FRAME_BYTES = 370
"""The same in a frame to a client: 66 bytes of heads of Ethernet, IP and TCP for each packet."""


@attrs.frozen
class Point:
    """One measured load: rates for each second, and cores used."""

    name: str
    workers: int
    publications: float
    frames: float
    worker_cores: float
    redis_cores: float
    copies: float
    """Workers that each publication was copied to, on average."""


@attrs.frozen
class Model:
    """The costs, in seconds of processor time."""

    worker_publication: float
    frame: float
    publication: float
    copy: float

    def worker_cores(self, point: Point) -> float:
        """Return the cores that the workers of a point should use."""
        read = point.copies * point.publications * self.worker_publication
        return read + point.frames * self.frame

    def redis_cores(self, point: Point) -> float:
        """Return the cores that Redis should use."""
        return point.publications * (self.publication + point.copies * self.copy)


def _line(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Return a and b of a x + b y = c, for two of (x, y, c)."""
    (x1, y1, c1), (x2, y2, c2) = first, second
    determinant = x1 * y2 - x2 * y1
    if determinant == 0:
        raise ValueError("the points do not differ in what they should separate")
    return (c1 * y2 - c2 * y1) / determinant, (x1 * c2 - x2 * c1) / determinant


def fit(few: Point, many: Point, more_workers: Point) -> Model:
    """Fit the model: workers by two points that differ in frames, Redis by two in copies.

    Raises:
        ValueError: the points do not differ in these.
    """
    worker_publication, frame = _line(
        (few.copies * few.publications, few.frames, few.worker_cores),
        (many.copies * many.publications, many.frames, many.worker_cores),
    )
    publication, copy = _line(
        (many.publications, many.publications * many.copies, many.redis_cores),
        (
            more_workers.publications,
            more_workers.publications * more_workers.copies,
            more_workers.redis_cores,
        ),
    )
    return Model(worker_publication, frame, publication, copy)


@attrs.frozen
class Demand:
    """A load to plan for."""

    clients: int
    publications: float
    """For each second, over all topics."""
    frames_per_client: float
    """For each second."""
    process_bytes: float
    """Memory of a client in the server."""
    kernel_bytes: float
    """Memory of its socket at the server's end."""
    max_descriptors: int = 20_000
    """Files that a process may have open."""


@attrs.frozen
class Sizing:
    """The workers, machines and masters that a demand needs."""

    workers: int
    machines: int
    redis_masters: int
    """Masters of a Cluster, by processor time."""
    redis_egress_bits: float
    """From all masters, for each second."""
    nic_bits: float
    """To the clients, from each machine, for each second."""
    memory_bytes: float
    """The memory of the clients of each machine."""
    bound_by: str
    """The limit that decides the number of machines."""


def size(model: Model, demand: Demand) -> Sizing:
    """Return how many workers, machines and masters a demand needs.

    Raises:
        ValueError: reading all publications alone takes a worker's whole share of a core.
    """
    frames = demand.clients * demand.frames_per_client
    room = LARGEST_USE - demand.publications * model.worker_publication
    if room <= 0:
        raise ValueError("a worker cannot read so many publications: topics have to be divided")
    descriptors = demand.max_descriptors - 64
    workers = _up(max(frames * model.frame / room, demand.clients / descriptors))
    bytes_per_client = demand.process_bytes + demand.kernel_bytes
    needs = {
        "processor": frames * model.frame / room / WORKERS_PER_MACHINE,
        "descriptors": demand.clients / descriptors / WORKERS_PER_MACHINE,
        "memory": demand.clients * bytes_per_client / (0.8 * MACHINE_BYTES),
        "network": frames * FRAME_BYTES * 8 / (LARGEST_USE * MACHINE_NIC_BITS_PER_SECOND),
    }
    bound_by = max(needs, key=lambda name: needs[name])
    machines = _up(needs[bound_by])
    redis = demand.publications * (model.publication + workers * model.copy)
    return Sizing(
        workers=workers,
        machines=machines,
        redis_masters=_up(redis / LARGEST_USE),
        redis_egress_bits=demand.publications * workers * MESSAGE_BYTES * 8,
        nic_bits=frames * FRAME_BYTES * 8 / machines,
        memory_bytes=demand.clients * bytes_per_client / machines,
        bound_by=bound_by,
    )


def _up(value: float) -> int:
    return max(1, int(-(-value // 1)))


def errors(model: Model, points: Sequence[Point]) -> list[tuple[str, float, float]]:
    """Return for each point what was predicted over what was measured: workers, and Redis."""
    return [
        (
            point.name,
            model.worker_cores(point) / point.worker_cores,
            model.redis_cores(point) / point.redis_cores,
        )
        for point in points
    ]
