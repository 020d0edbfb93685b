"""The servers of the benchmark: how each is started, and how its clients subscribe."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs

from bench import install
from bench.load import Endpoint
from bench.rig import (
    Core,
    Process,
    RigError,
    accepts_connections,
    compiled,
    free_port,
    running,
    wait_for,
)

PEERS = Path(__file__).parent / "peers"
STREAMER = (sys.executable, "-m", "streamer")

Started = tuple[Endpoint, Process]
Subscribe = Callable[[Sequence[str]], tuple[str, Sequence[str]]]
"""Channels -> (request path, texts to send)."""
Start = Callable[[Path, Core, int], contextlib.AbstractContextManager[Started]]
"""Starts a server: (directory for its files, core, port of Redis)."""


@attrs.frozen
class Server:
    """A server under test."""

    name: str
    title: str
    start: Start
    busy_polls: bool = False
    """Whether it never sleeps, so that its CPU time has no meaning."""
    only_if_named: bool = False
    """Whether it is only for scenarios that name it."""
    merges: bool = False
    """Whether it merges updates of a topic that wait for a client."""


@attrs.frozen
class Certificate:
    """PEM files for servers with TLS."""

    certificate: Path
    key: Path

    def flags(self) -> tuple[str, ...]:
        """The options of `streamer serve`."""
        return ("--tls-certificate", str(self.certificate), "--tls-key", str(self.key))

    def environment(self) -> dict[str, str]:
        """The environment of the peers that can use TLS."""
        return {"TLS_CERTIFICATE": str(self.certificate), "TLS_KEY": str(self.key)}


def subscribe_streamer(
    channels: Sequence[str], *, delta: bool = False
) -> tuple[str, Sequence[str]]:
    """Use streamer's own protocol; the channels are of stocks: stock:CODE:KIND."""
    targets, kinds = _targets_and_kinds(channels)
    message = {
        "type": "subscribe",
        "subscription_type": "stock",
        "targets": targets,
        "kinds": kinds,
        "delta": delta,
    }
    return "/v1/ws", [json.dumps(message)]


def subscribe_events(channels: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Use streamer's server-sent events, whose request is the subscription."""
    targets, kinds = _targets_and_kinds(channels)
    topics = ",".join(f"stock:{target}" for target in targets)
    return f"/v1/stream?topics={topics}&kinds={','.join(kinds)}", ()


def _targets_and_kinds(channels: Sequence[str]) -> tuple[list[str], list[str]]:
    parts = [channel.split(":") for channel in channels]
    return (
        list(dict.fromkeys(code for _, code, _ in parts)),
        list(dict.fromkeys(kind for _, _, kind in parts)),
    )


def subscribe_json(channels: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Use the protocol of peers whose application defines it."""
    return "/", [json.dumps({"subscribe": list(channels)})]


def subscribe_path(channels: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Name the channels in the path; the handshake is the subscription."""
    return f"/sub/{','.join(channels)}", ()


def subscribe_nats(channels: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Use NATS over WebSocket; the PONG confirms all subscriptions before it."""
    commands = ['CONNECT {"verbose":false,"pedantic":false}']
    commands += [f"SUB {channel} {sid}" for sid, channel in enumerate(channels, 1)]
    return "/", ["".join(f"{command}\r\n" for command in [*commands, "PING"])]


_subscribe_deltas = partial(subscribe_streamer, delta=True)


def announced(process: Process) -> Callable[[], tuple[int, str] | None]:
    """Return a function for the WebSocket port of a streamer and the URL of its HTTP listener."""
    lines = re.compile(r"^WebSocket\s+wss?://[^\s:]+:(\d+)\S*\s+^HTTP\s+(\S+)$", re.MULTILINE)

    def look() -> tuple[int, str] | None:
        found = lines.search(process.log.read_text())
        return (int(found[1]), found[2]) if found else None

    return look


def streamer(
    *flags: str,
    subscribe: Subscribe = subscribe_streamer,
    deflate: bool = False,
    sse: bool = False,
    package: Path | None = None,
) -> Start:
    """Start `streamer serve` as an operator would, without limits per address.

    `package` is the directory of a streamer other than the one that this program would import.
    """

    @contextlib.contextmanager
    def start(directory: Path, core: Core, redis_port: int) -> Iterator[Started]:
        command = [*STREAMER, "serve", "--redis", f"redis://127.0.0.1:{redis_port}"]
        command += ["--port", "0", "--http-port", "0", "--max-connections-per-address", "0", *flags]
        with running(
            command,
            core=core,
            log=directory / "streamer.log",
            environment={} if package is None else {"PYTHONPATH": str(package)},
            # Python looks for modules in the present directory first.
            directory=None if package is None else directory,
        ) as process:
            port, http_url = wait_for("streamer serve", process, announced(process))
            endpoint = Endpoint(
                port,
                redis_port,
                subscribe,
                ack='"subscribed"',
                acks=1,
                deflate=deflate,
                sse=sse,
                tls="--tls-certificate" in flags,
                statistics_url=f"{http_url}/v1/ws/stats",
            )
            yield endpoint, process

    return start


@contextlib.contextmanager
def raw_send(directory: Path, core: Core, redis_port: int) -> Iterator[Started]:
    """Start a loop in C: one send() for each frame and client."""
    port = free_port()
    command = [str(compiled("raw_send", [PEERS / "raw_send.c"])), str(redis_port), str(port)]
    with running(command, core=core, log=directory / "raw_send.log") as process:
        wait_for("raw_send", process, lambda: accepts_connections(port))
        yield Endpoint(port, redis_port, subscribe_path), process


@contextlib.contextmanager
def _json_peer(
    command: Sequence[str | Path],
    environment: dict[str, str],
    directory: Path,
    core: Core,
    redis_port: int,
    *,
    deflate: bool = False,
    tls: Certificate | None = None,
) -> Iterator[Started]:
    port = free_port()
    name = Path(command[-1]).stem
    if deflate:
        environment = {**environment, "DEFLATE": "1"}
    if tls is not None:
        environment = {**environment, **tls.environment()}
    with running(
        [*command, str(redis_port), str(port)],
        core=core,
        log=directory / f"{name}.log",
        environment=environment,
    ) as process:
        wait_for(name, process, lambda: accepts_connections(port))
        endpoint = Endpoint(
            port,
            redis_port,
            subscribe_json,
            ack='"subscribed"',
            acks=1,
            deflate=deflate,
            tls=tls is not None,
        )
        yield endpoint, process


def python_peer(script: str, *, deflate: bool = False, tls: Certificate | None = None) -> Start:
    """Start one of the Python peers."""

    def start(
        directory: Path, core: Core, redis_port: int
    ) -> contextlib.AbstractContextManager[Started]:
        command = [install.python(), PEERS / script]
        return _json_peer(command, {}, directory, core, redis_port, deflate=deflate, tls=tls)

    return start


def node_ws(*, deflate: bool = False, tls: Certificate | None = None) -> Start:
    """Start Node's ws and ioredis."""

    def start(
        directory: Path, core: Core, redis_port: int
    ) -> contextlib.AbstractContextManager[Started]:
        environment = {"NODE_PATH": str(install.node_modules("ws", "ioredis"))}
        command: list[str | Path] = ["node", PEERS / "node_ws.js"]
        return _json_peer(
            command, environment, directory, core, redis_port, deflate=deflate, tls=tls
        )

    return start


def filled(template: Path, directory: Path, **values: object) -> Path:
    """Write a configuration with each @NAME@ replaced; return its path."""
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    path = directory / template.name
    path.write_text(text)
    return path


def nchan(*, deflate: bool = False) -> Start:
    """Start nginx with nchan; publications are POSTs to itself."""

    def start(
        directory: Path, core: Core, _redis_port: int
    ) -> contextlib.AbstractContextManager[Started]:
        return _nchan(directory, core, deflate=deflate)

    return start


@contextlib.contextmanager
def _nchan(directory: Path, core: Core, *, deflate: bool) -> Iterator[Started]:
    root = install.debian("nchan", "nginx", "libnginx-mod-nchan")
    try:
        # Compiled into Debian's nginx, which needs it regardless of the configuration.
        Path("/var/lib/nginx").mkdir(exist_ok=True)
    except PermissionError as error:
        raise RigError("nchan: nginx needs /var/lib/nginx; only root can make it.") from error
    port = free_port()
    configuration = filled(
        PEERS / "nchan.conf",
        directory,
        ROOT=root,
        DIRECTORY=directory,
        PORT=port,
        DEFLATE="on" if deflate else "off",
    )
    command = [
        str(part) for part in (root / "usr/sbin/nginx", "-p", directory, "-c", configuration)
    ]
    with running(command, core=core, log=directory / "nchan.log") as process:
        wait_for("nginx", process, lambda: accepts_connections(port))
        yield (
            Endpoint(
                port,
                port,
                subscribe_path,
                publish_protocol="http",
                publish_path="/pub/",
                deflate=deflate,
            ),
            process,
        )


@contextlib.contextmanager
def nats(directory: Path, core: Core, _redis_port: int) -> Iterator[Started]:
    """Start nats-server with its WebSocket listener; publications use NATS."""
    root = install.debian("nats", "nats-server")
    port, publish_port = free_port(), free_port()
    configuration = filled(PEERS / "nats.conf", directory, PORT=port, PUBLISH_PORT=publish_port)
    command = [str(root / "usr/sbin/nats-server"), "-c", str(configuration)]
    with running(command, core=core, log=directory / "nats.log") as process:
        wait_for("nats-server", process, lambda: accepts_connections(port))
        endpoint = Endpoint(
            port,
            publish_port,
            subscribe_nats,
            ack="PONG",
            acks=1,
            nats=True,
            publish_protocol="nats",
        )
        yield endpoint, process


SERVERS: dict[str, Server] = {
    server.name: server
    for server in (
        Server("streamer", "streamer", streamer("--flush-interval-ms", "0"), merges=True),
        Server(
            "streamer-30ms",
            "streamer, 30 ms window",
            streamer("--flush-interval-ms", "30"),
            merges=True,
        ),
        Server("raw-send", "C loop, one send per frame and client", raw_send),
        Server(
            "uwebsockets",
            "uWebSockets (C++, through socketify)",
            python_peer("socketify_server.py"),
            busy_polls=True,
        ),
        Server("nchan", "nchan (nginx module, C)", nchan()),
        Server("nats", "nats-server websocket (Go)", nats),
        Server("node-ws", "Node ws + ioredis, shared frame", node_ws()),
        Server("picows", "picows (Cython, uvloop)", python_peer("picows_server.py")),
        Server("websockets", "websockets broadcast (uvloop)", python_peer("websockets_server.py")),
        Server("fastapi", "FastAPI + uvicorn (uvloop)", python_peer("fastapi_app.py")),
        Server(
            "trio-websocket",
            "trio-websocket, send_message per client",
            python_peer("trio_websocket_server.py"),
        ),
        Server(
            "streamer-deflate",
            "streamer, compressed",
            streamer("--flush-interval-ms", "0", deflate=True),
            only_if_named=True,
        ),
        Server(
            "streamer-delta",
            "streamer, deltas",
            streamer("--flush-interval-ms", "0", subscribe=_subscribe_deltas),
            only_if_named=True,
        ),
        Server(
            "streamer-delta-deflate",
            "streamer, deltas compressed",
            streamer("--flush-interval-ms", "0", subscribe=_subscribe_deltas, deflate=True),
            only_if_named=True,
        ),
        Server(
            "streamer-sse",
            "streamer, server-sent events",
            streamer("--flush-interval-ms", "0", subscribe=subscribe_events, sse=True),
            only_if_named=True,
        ),
        Server(
            "uwebsockets-deflate",
            "uWebSockets, shared compressor",
            python_peer("socketify_server.py", deflate=True),
            busy_polls=True,
            only_if_named=True,
        ),
        Server(
            "nchan-deflate",
            "nchan, messages compressed once",
            nchan(deflate=True),
            only_if_named=True,
        ),
        Server(
            "node-ws-deflate",
            "Node ws, a compressor per client",
            node_ws(deflate=True),
            only_if_named=True,
        ),
        Server(
            "websockets-deflate",
            "websockets, a compressor per client",
            python_peer("websockets_server.py", deflate=True),
            only_if_named=True,
        ),
    )
}
