"""The servers that can be put on the rig, and how clients subscribe to each."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.load import Endpoint
from bench.rig import Process, accepts_connections, compiled, free_port, running, wait_for

Started = tuple[Endpoint, Process]

PEERS = Path(__file__).parent / "peers"
STREAMER = (sys.executable, "-m", "streamer")


def subscribe_streamer(channels: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Streamer's own protocol, price updates of stocks only."""
    targets = [channel.split(":")[1] for channel in channels]
    message = {
        "type": "subscribe",
        "subscription_type": "stock",
        "targets": targets,
        "kinds": ["price"],
    }
    return "/v1/ws", [json.dumps(message)]


def _announced_port(process: Process) -> Callable[[], int | None]:
    def look() -> int | None:
        found = re.search(r"^WebSocket\s+ws://[^\s:]+:(\d+)", process.log.read_text(), re.MULTILINE)
        return int(found[1]) if found else None

    return look


@contextlib.contextmanager
def streamer(directory: Path, core: int, redis_port: int, *flags: str) -> Iterator[Started]:
    """`streamer serve` as an operator would start it, with limits per address off."""
    command = [*STREAMER, "serve", "--redis", f"redis://127.0.0.1:{redis_port}"]
    command += ["--port", "0", "--http-port", "0", "--max-connections-per-address", "0", *flags]
    with running(command, core=core, log=directory / "streamer.log") as process:
        port = wait_for("streamer serve", process, _announced_port(process))
        yield Endpoint(port, redis_port, subscribe_streamer, ack='"subscribed"', acks=1), process


def subscribe_path(channels: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Channels in the path; the handshake is the subscription."""
    return f"/sub/{','.join(channels)}", ()


@contextlib.contextmanager
def raw_send(directory: Path, core: int, redis_port: int) -> Iterator[Started]:
    """A loop in C: one send() for each frame and client."""
    port = free_port()
    binary = compiled("raw_send", [PEERS / "raw_send.c"])
    with running(
        [binary, str(redis_port), str(port)], core=core, log=directory / "raw_send.log"
    ) as process:
        wait_for("raw_send", process, lambda: accepts_connections(port))
        yield Endpoint(port, redis_port, subscribe_path), process
