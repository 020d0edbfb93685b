"""The Python side of the load client: what it shall do, and what it reports."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.rig import RigError, compiled, pinned

# Connecting is bounded by the load client itself (CONNECT_LIMIT_SECONDS in main.c).
CONNECT_ALLOWANCE_SECONDS = 130.0


@attrs.frozen
class Topic:
    """What is published on one channel: a JSON object without its closing brace."""

    channel: str
    head: str


@attrs.frozen
class Subscriber:
    """One connection: request path, indexes of its topics, text messages it sends to subscribe."""

    path: str
    topics: Sequence[int]
    sends: Sequence[str]


@attrs.frozen
class Endpoint:
    """Where the server under test listens, and how its clients and publisher speak to it."""

    port: int
    publish_port: int
    subscribe: Callable[[Sequence[str]], tuple[str, Sequence[str]]]
    """Channels to (request path, texts to send)."""
    ack: str = ""
    acks: int = 0
    nats: bool = False
    publish_protocol: str = "redis"
    publish_path: str = "/"


@attrs.frozen
class Load:
    """What the load client does; seconds, milliseconds and counts as named."""

    rate_per_second: float
    seconds: float
    payload_bytes: int = 165
    warmup_seconds: float = 0.5
    settle_seconds: float = 0.5
    drain_seconds: float = 5.0
    sample: int = 50
    slow: int = 0
    slow_seconds: float = 2.0
    storm: int = 0
    storm_after_seconds: float = 1.0
    in_flight: int = 100

    def flags(self) -> list[str]:
        """The load client's options."""
        names = {"rate_per_second": "rate"}
        options = attrs.asdict(self)
        return [
            f"--{names.get(name, name).replace('_', '-')}={value}"
            for name, value in options.items()
        ]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def run_load(
    load: Load,
    endpoint: Endpoint,
    topics: Sequence[Topic],
    subscriptions: Sequence[Sequence[int]],
    *,
    core: int,
    on_event: Callable[[str], None],
) -> dict[str, Any]:
    """Run the load client to its end and return its result.

    Args:
        load: what to do.
        endpoint: where.
        topics: what is published, in turn.
        subscriptions: for each connection the indexes of its topics.
        core: the core to run on, publisher included.
        on_event: called with "connected", "measuring" and "drained" as these happen.

    Raises:
        RigError: the load client failed or did not end in time.
    """
    client = compiled("loadclient", sorted((Path(__file__).parent / "loadclient").glob("*.[ch]")))
    with tempfile.TemporaryDirectory(prefix="fanout-") as name:
        directory = Path(name)
        lines = (f"{_escaped(topic.channel)}\t{_escaped(topic.head)}\n" for topic in topics)
        (directory / "topics").write_text("".join(lines))
        with (directory / "connections").open("w") as file:
            for wanted in subscriptions:
                path, sends = endpoint.subscribe([topics[i].channel for i in wanted])
                fields = [_escaped(path), ",".join(map(str, wanted)), *map(_escaped, sends)]
                file.write("\t".join(fields) + "\n")
        command = [*pinned(core), str(client), *load.flags()]
        command += [
            f"--topics={directory / 'topics'}",
            f"--connections={directory / 'connections'}",
        ]
        command += [f"--port={endpoint.port}", f"--publish-port={endpoint.publish_port}"]
        command += [
            f"--publish-protocol={endpoint.publish_protocol}",
            f"--publish-path={endpoint.publish_path}",
        ]
        command += [
            f"--ack={endpoint.ack}",
            f"--acks={endpoint.acks}",
            *(["--nats"] if endpoint.nats else []),
        ]
        bound = load.settle_seconds + load.warmup_seconds + load.seconds + load.drain_seconds
        return _read_events(command, CONNECT_ALLOWANCE_SECONDS + bound, on_event)


def _read_events(
    command: Sequence[str], seconds: float, on_event: Callable[[str], None]
) -> dict[str, Any]:
    # `timeout` bounds the client from outside, so reading its pipe needs no deadline of its own.
    bounded = ["timeout", "--kill-after=5", f"{seconds:.0f}", *command]
    with subprocess.Popen(
        bounded, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stderr is not None
        try:
            for line in client.stdout:
                report: dict[str, Any] = json.loads(line)
                if report["event"] == "result":
                    report["warnings"] = client.stderr.read().splitlines()
                    return report
                on_event(report["event"])
        except BaseException:
            client.terminate()
            raise
        raise RigError(f"The load client failed: {client.stderr.read().strip() or client.wait()}")
