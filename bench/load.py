"""The Python side of the load client: its options and its report."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench import install
from bench.rig import Core, RigError, compiled

# Connecting is bounded by the load client itself (CONNECT_LIMIT_SECONDS in main.c).
CONNECT_ALLOWANCE_SECONDS = 130.0


@attrs.frozen
class Topic:
    """The publications of one channel: a JSON object without its closing brace."""

    channel: str
    head: str


@attrs.frozen
class Scheduled:
    """One publication of a recorded feed: its time, topic and text (as in Topic)."""

    at_ns: int
    topic: int
    head: str


@attrs.frozen
class Load:
    """A run of the load client; seconds, bytes and counts as named."""

    rate_per_second: float = 0.0
    """Publications over all topics, which take turns. 0 leaves the clients idle."""
    seconds: float = 5.0
    payload_bytes: int = 165
    warmup_seconds: float = 0.5
    settle_seconds: float = 0.5
    drain_seconds: float = 5.0
    """How long to wait at most for publications that have not arrived."""
    sample: int = 50
    slow: int = 0
    slow_seconds: float = 2.0
    storm: int = 0
    """How many of the connections, the last ones, are made together while the others receive."""
    storm_after_seconds: float = 1.0
    in_flight: int = 100
    """Handshakes under way at a time."""

    def flags(self) -> list[str]:
        """The load client's options."""
        options = {"rate": self.rate_per_second, **attrs.asdict(self)}
        del options["rate_per_second"]
        return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


@attrs.frozen
class Workload:
    """A load on certain topics, with each client's subscriptions."""

    load: Load
    topics: Sequence[Topic]
    subscriptions: Sequence[Sequence[int]]
    """For each connection the indexes of its topics."""
    schedule: Sequence[Scheduled] = ()
    """A recorded schedule of publications, instead of the topics' own heads at a rate."""


@attrs.frozen
class Endpoint:
    """The address of the server under test, and the protocol of its clients and publisher."""

    port: int
    publish_port: int
    subscribe: Callable[[Sequence[str]], tuple[str, Sequence[str]]]
    """Channels -> (request path, texts to send)."""
    ack: str = ""
    acks: int = 0
    nats: bool = False
    deflate: bool = False
    """Whether clients offer permessage-deflate, and the server has to agree."""
    sse: bool = False
    """Whether clients receive server-sent events; the request path is the subscription."""
    tls: bool = False
    """Whether clients connect with TLS; they accept any certificate."""
    tls_resume: bool = False
    """Whether their TLS handshakes resume the newest session of any of them."""
    publish_protocol: str = "redis"
    publish_path: str = "/"
    statistics_url: str = ""
    """The URL at which the server reports the pauses of its event loop, if it does."""

    def flags(self) -> list[str]:
        """The load client's options."""
        names = ("port", "publish_port", "publish_protocol", "publish_path", "ack", "acks")
        flags = [f"--{name.replace('_', '-')}={getattr(self, name)}" for name in names]
        options = ("nats", "deflate", "sse", "tls", "tls_resume")
        switches = [f"--{name.replace('_', '-')}" for name in options if getattr(self, name)]
        return flags + switches


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def _topic_lines(topics: Sequence[Topic]) -> Iterator[Iterable[str]]:
    # A server may number the messages of all kinds of one target together.
    streams: dict[str, int] = {}
    for topic in topics:
        target = topic.channel.rpartition(":")[0]
        yield topic.channel, str(streams.setdefault(target, len(streams))), topic.head


def _connection_lines(workload: Workload, endpoint: Endpoint) -> Iterator[Iterable[str]]:
    for wanted in workload.subscriptions:
        path, sends = endpoint.subscribe([workload.topics[i].channel for i in wanted])
        yield path, ",".join(map(str, wanted)), *sends


def _write(path: Path, lines: Iterable[Iterable[str]]) -> str:
    with path.open("w") as file:
        file.writelines("\t".join(map(_escaped, fields)) + "\n" for fields in lines)
    return f"--{path.name}={path}"


def _compiled(*, tls: bool) -> Path:
    sources = sorted((Path(__file__).parent / "loadclient").glob("*.[ch]"))
    if not tls:
        return compiled("loadclient", sources, libraries=["z"])
    if Path("/usr/include/openssl/ssl.h").exists():
        flags: list[str] = []
        libraries = ["ssl", "crypto"]
    else:  # Debian's development files, with libraries to be linked into the program
        root = install.debian("openssl", "libssl-dev") / "usr"
        include, library = next(root.glob("include/*-linux-*")), next(root.glob("lib/*-linux-*"))
        flags = [f"-I{root / 'include'}", f"-I{include}", f"-L{library}"]
        libraries = [":libssl.a", ":libcrypto.a", "dl", "pthread"]
    return compiled(
        "loadclient-tls", sources, flags=["-DWITH_TLS", *flags], libraries=["z", *libraries]
    )


def run_load(
    workload: Workload, endpoint: Endpoint, *, core: Core, on_event: Callable[[str], None]
) -> dict[str, Any]:
    """Run the load client to its end and return its result.

    Args:
        workload: the publications and subscriptions.
        endpoint: the server.
        core: the core to run on, publisher included.
        on_event: called with "connected", "measuring", "resuming" (slow clients read again) and
            "drained" as these happen.

    Raises:
        RigError: the load client failed or did not end in time.
    """
    command = [str(_compiled(tls=endpoint.tls))]
    load = workload.load
    with tempfile.TemporaryDirectory(prefix="fanout-") as name:
        directory = Path(name)
        command += [*load.flags(), *endpoint.flags()]
        command.append(_write(directory / "topics", _topic_lines(workload.topics)))
        command.append(_write(directory / "connections", _connection_lines(workload, endpoint)))
        if workload.schedule:
            lines = ((str(one.at_ns), str(one.topic), one.head) for one in workload.schedule)
            command.append(_write(directory / "schedule", lines))
        bound = load.settle_seconds + load.warmup_seconds + load.seconds + load.drain_seconds
        return _read_events(core.command(command), CONNECT_ALLOWANCE_SECONDS + bound, on_event)


def _read_events(
    command: Sequence[str], seconds: float, on_event: Callable[[str], None]
) -> dict[str, Any]:
    # `timeout` bounds the client from outside, so reading its pipe needs no deadline of its own.
    bounded = ["timeout", "--kill-after=5", f"{seconds:.0f}", *command]
    with subprocess.Popen(
        bounded,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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
