"""The cost of identity, and how soon what an operator or a token's end demands has happened.

    python -m bench.identity expiry      # 10,000 clients whose tokens end in the same minute
    python -m bench.identity revoke      # disconnect and revoke, over 2 instances of 2 workers
    python -m bench.identity connects    # connections a second without and with tokens

Servers and Redis are processes of their own; the clients are light ones, in this process. Figures
of a busy machine include what other programs took: beside each latency is that of a quiet time, and
CPU time counts the server alone.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import secrets
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import click
import jwt
import redis as redis_py
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench.options import NICENESS
from bench.rig import (
    Core,
    Cores,
    Process,
    RigError,
    end_on_sigterm,
    running,
    running_redis,
    wait_for,
)
from bench.servers import STREAMER
from bench.websockets import TEXT, Connection, Crowd, frame, request

TOPIC = "stock:BENCH"
RSA_BITS = 2048
AT_A_TIME = 100
OPEN_SECONDS = 300.0
GONE_SECONDS = 30.0
ONE_USER = "HS256, one user"
"""All tokens are of one user, whose own topic is live after the first."""

_ANNOUNCED = re.compile(r"^WebSocket\s+ws://[^\s:]+:(\d+)\S*\s+^HTTP\s+(\S+)$", re.MULTILINE)


@contextlib.contextmanager
def serving(
    directory: Path, redis_port: int, *flags: str, name: str = "streamer", core: Core | None = None
) -> Iterator[tuple[int, str, Process]]:
    """Run a server; yield its WebSocket port, the URL of its HTTP port, and its process."""
    command = [*STREAMER, "serve", "--redis", f"redis://127.0.0.1:{redis_port}", "--port", "0"]
    command += ["--http-port", "0", "--max-connections-per-address", "0", *flags]
    core = core or available_cores().server
    with running(command, core=core, log=directory / f"{name}.log") as process:
        announced = wait_for(name, process, lambda: _ANNOUNCED.search(process.log.read_text()))
        yield int(announced[1]), announced[2], process


def available_cores() -> Cores:
    """Return the cores, for programs with the priority of this one."""
    return Cores.available(os.getpriority(os.PRIO_PROCESS, 0))


def secret_file(directory: Path) -> tuple[str, Path]:
    """Make a secret; return it, and a file with it."""
    secret, path = secrets.token_urlsafe(32), directory / "secret"
    path.write_text(secret)
    return secret, path


def token(key: Any, algorithm: str, user: str, issued_at: float, expires_at: float) -> str:
    """Sign a token."""
    claims = {"sub": user, "iat": issued_at, "exp": expires_at, "jti": secrets.token_hex(8)}
    return jwt.encode(claims, key, algorithm=algorithm)


def subscription() -> bytes:
    """Return the frame that subscribes to the topic."""
    kind, _, target = TOPIC.partition(":")
    message = {"type": "subscribe", "subscription_type": kind, "targets": [target]}
    return frame(json.dumps(message).encode())


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that so large a part of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * len(ordered)))]


# Prices, as some clients receive them


def probe(port: int, tokens: Sequence[str], pipe: Pipe) -> None:
    """Receive prices, and report when each was published and how long it took; a process."""
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        connections = {}
        for one in tokens:
            client_socket = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client_socket.sendall(request(one) + subscription())
            poll.register(client_socket, select.EPOLLIN)
            connections[client_socket.fileno()] = Connection(0, client_socket, b"")
        pipe.send(None)
        latencies: list[tuple[float, float]] = []
        while not pipe.poll():
            for descriptor, _ in poll.poll(0.5):
                connection = connections[descriptor]
                for opcode, payload in connection.take(connection.socket.recv(1 << 16)):
                    now = time.monotonic_ns()
                    if opcode == TEXT:
                        latencies += _published(payload, now)
                    else:
                        connection.send(frame(payload, 10))
        pipe.send(latencies)


def _published(payload: bytes, now_ns: int) -> Iterator[tuple[float, float]]:
    """Yield the time of publication (monotonic seconds), and the milliseconds since then."""
    for found in re.finditer(rb'"at_ns": ?(\d+)', payload):
        at_ns = int(found[1])
        yield at_ns / 1e9, (now_ns - at_ns) / 1e6


def publish(redis_port: int, rate: float, pipe: Pipe) -> None:
    """Publish prices at a steady rate until the pipe has something; a process."""
    price = {"type": "price_update", "stock_code": TOPIC.partition(":")[2], "price": 72_500}
    price |= {"change": 0, "change_percent": 0, "volume": 1}
    with redis_py.Redis(port=redis_port) as client:
        due = time.monotonic()
        while not pipe.poll(max(0.0, due - time.monotonic())):
            message = json.dumps(price | {"at_ns": time.monotonic_ns()})
            client.publish(f"{TOPIC}:price", message)
            due += 1 / rate


@contextlib.contextmanager
def helper(target: Callable[..., None], *arguments: object) -> Iterator[Pipe]:
    """Run a function in a process of its own, which ends when it is sent something."""
    # Not forked: that would share the clients' sockets.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    try:
        yield here
    finally:
        process.terminate()
        process.join()


def describe(latencies: Sequence[float]) -> str:
    """Describe latencies in milliseconds."""
    if not latencies:
        return "nothing was received"
    shown = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    parts = [f"{name} {percentile(latencies, part):.1f} ms" for name, part in shown.items()]
    return f"{', '.join(parts)}, most {max(latencies):.1f} ms of {len(latencies):,}"


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@NICENESS
def main(niceness: int) -> None:
    """Measure what identity costs, and how soon it takes effect."""
    end_on_sigterm()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


@main.command()
@click.option("--clients", default=10_000, type=click.IntRange(1, 15_000))
@click.option("--life-seconds", default=900.0, type=click.FloatRange(30), help="Of each token.")
@click.option("--spread-seconds", default=60.0, help="The tokens end within this time.")
@click.option("--rate", default=10.0, type=click.FloatRange(0.1), help="Prices a second.")
@click.option("--probes", default=20, type=click.IntRange(1, 100), help="Clients with prices.")
@click.option("--all-subscribe", is_flag=True, help="All clients receive the prices.")
def expiry(
    clients: int,
    life_seconds: float,
    spread_seconds: float,
    rate: float,
    probes: int,
    *,
    all_subscribe: bool,
) -> None:
    """Let all tokens end in the same minute; measure prices while all clients renew theirs."""
    notices: Counter[int] = Counter()
    renewed_at: list[float] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        secret, path = secret_file(directory)
        port_of_redis, _ = stack.enter_context(running_redis(directory, available_cores().client))
        flags = ("--auth", "required", "--auth-secret-file", str(path))
        port, _, server = stack.enter_context(serving(directory, port_of_redis, *flags))

        def on_message(connection: Connection, payload: bytes) -> None:
            if b'"token_expiring"' in payload:
                notices[int(time.monotonic())] += 1
                now = time.time()
                new = token(secret, "HS256", f"user-{connection.number}", now, now + 86_400)
                connection.send(frame(json.dumps({"type": "authenticate", "token": new}).encode()))
            elif b'"authenticated"' in payload:
                renewed_at.append(time.monotonic())

        started = time.time()
        # The first notices are due a third of the life before the end, once all are connected.
        room_seconds = max(20.0, clients / 100)
        first_end = started + room_seconds + min(life_seconds / 3, 300.0)
        crowd = Crowd(on_message)
        stack.callback(crowd.close)
        crowd.open_all(
            (
                (
                    port,
                    request(token(secret, "HS256", f"user-{number}", issued_at, end)),
                )
                for number in range(clients)
                for end in [first_end + spread_seconds * number / clients]
                for issued_at in [min(end - life_seconds, started)]
            ),
            at_a_time=AT_A_TIME,
            deadline_seconds=OPEN_SECONDS,
        )
        click.echo(f"{clients:,} clients connected in {time.time() - started:.1f} s")
        if all_subscribe:
            for connection in crowd.connections:
                connection.send(subscription())
        own = [token(secret, "HS256", "probe", started, started + 86_400) for _ in range(probes)]
        prober = stack.enter_context(helper(probe, port, own))
        prober.recv()
        publisher = stack.enter_context(helper(publish, port_of_redis, rate))
        quiet_from, quiet_cpu = time.monotonic(), server.cpu_seconds()
        crowd.run(lambda: bool(notices), time.monotonic() + OPEN_SECONDS)
        busy_from, busy_cpu = time.monotonic(), server.cpu_seconds()
        busy_waited = server.waiting_seconds()
        deadline = time.monotonic() + life_seconds + spread_seconds
        crowd.run(lambda: len(renewed_at) + len(crowd.closed) >= clients, deadline)
        busy_until, last_cpu = time.monotonic(), server.cpu_seconds()
        waited = server.waiting_seconds() - busy_waited
        publisher.send(None)
        prober.send(None)
        latencies: list[tuple[float, float]] = prober.recv()
        quiet = [ms for at, ms in latencies if quiet_from <= at < busy_from]
        busy = [ms for at, ms in latencies if busy_from <= at < busy_until]
        per_second = Counter(map(int, renewed_at))
        usual_cpu = (busy_cpu - quiet_cpu) / (busy_from - quiet_from)
        cost = (last_cpu - busy_cpu - usual_cpu * (busy_until - busy_from)) / max(
            1, len(renewed_at)
        )
        click.echo(
            f"renewed {len(renewed_at):,} of {clients:,} in {busy_until - busy_from:.0f} s, "
            f"closed {len(crowd.closed)}; at most {max(per_second.values()) / clients:.1%} of them "
            f"in a second (notices {max(notices.values()) / clients:.1%})\n"
            f"server CPU for each: {cost * 1e6:.0f} µs; the server was running for "
            f"{(last_cpu - busy_cpu) / (busy_until - busy_from):.0%} of the time, and had no core "
            f"for {waited / (busy_until - busy_from):.0%}\n"
            f"prices before: {describe(quiet)}\nprices meanwhile: {describe(busy)}"
        )


@main.command()
@click.option("--clients", default=2000, type=click.IntRange(8, 15_000))
def revoke(clients: int) -> None:
    """Close clients by topic and by revocation on all processes; measure until all are gone."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        secret, path = secret_file(directory)
        key, key_path = secrets.token_urlsafe(24), directory / "operators"
        key_path.write_text(key)
        port_of_redis, _ = stack.enter_context(running_redis(directory, available_cores().client))
        flags = ["--auth", "required", "--auth-secret-file", str(path), "--workers", "2"]
        flags += ["--api-key-file", str(key_path), "--api-timeout-seconds", "10"]
        cores = available_cores()
        instances = [
            stack.enter_context(
                serving(directory, port_of_redis, *flags, name=f"instance-{n}", core=core)
            )
            for n, core in enumerate((cores.server, cores.client))
        ]
        ports = [port for port, _, _ in instances]
        http_url = instances[0][1]

        def order(endpoint: str, **body: str) -> dict[str, Any]:
            url = f"{http_url}/v1/api/{endpoint}"
            asked = urllib.request.Request(url, json.dumps(body).encode())
            asked.add_header("Authorization", f"Bearer {key}")
            asked.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(asked, timeout=30) as answer:
                done: dict[str, Any] = json.load(answer)
                return done

        while order("info")["answered"] < 4:
            time.sleep(0.1)
        tokens: list[str] = []
        for endpoint, body in (
            ("disconnect", {"topic": TOPIC}),
            ("revoke", {"user": "42"}),
        ):
            acknowledged: list[int] = []
            crowd = Crowd(
                lambda one, payload, seen=acknowledged: (  # type: ignore[misc]
                    seen.append(one.number) if b'"subscribed"' in payload else None
                )
            )
            now = time.time()
            tokens = [token(secret, "HS256", "42", now - 5, now + 600) for _ in range(clients)]
            crowd.open_all(
                ((ports[n % 2], request(one)) for n, one in enumerate(tokens)),
                at_a_time=AT_A_TIME,
                deadline_seconds=OPEN_SECONDS,
            )
            for connection in crowd.connections:
                connection.send(subscription())
            crowd.run(lambda: len(acknowledged) == clients, time.monotonic() + OPEN_SECONDS)  # noqa: B023
            begun, cpu = time.monotonic(), sum(one.cpu_seconds() for _, _, one in instances)
            with _ordered(order, endpoint, body) as answers:
                crowd.run(lambda: len(crowd.closed) == clients, begun + GONE_SECONDS)  # noqa: B023
                gone = time.monotonic() - begun
            codes = Counter(connection.close_code for connection in crowd.closed)
            cpu = sum(one.cpu_seconds() for _, _, one in instances) - cpu
            click.echo(
                f"{endpoint}: {clients:,} clients of 2 instances of 2 workers gone in "
                f"{gone * 1000:.0f} ms ({cpu * 1000:.0f} ms of CPU in all), "
                f"closed with {dict(codes)}; answer {answers}"
            )
            crowd.close()
        refused = Crowd(lambda _one, _payload: None)
        for number, one in enumerate(tokens[:40]):
            refused.open(ports[number % 2], request(one))
        refused.run(lambda: len(refused.closed) == 40, time.monotonic() + GONE_SECONDS)
        codes = Counter(connection.close_code for connection in refused.closed)
        click.echo(f"40 of the revoked tokens again: closed with {dict(codes)}")


@contextlib.contextmanager
def _ordered(
    order: Callable[..., dict[str, Any]], endpoint: str, body: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Send a request from another thread meanwhile; its answer is there in the end."""
    answers: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: answers.update(order(endpoint, **body)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join()


@main.command()
@click.option("--clients", default=2000, type=click.IntRange(1, 15_000), help="In each round.")
@click.option("--rounds", default=5, type=click.IntRange(1, 100))
def connects(clients: int, rounds: int) -> None:
    """Open clients with a token each that the server has not seen, by kind of key."""
    ed_key, rsa_key = Ed25519PrivateKey.generate(), generate_private_key(65537, RSA_BITS)
    secret = secrets.token_urlsafe(32)
    kinds: dict[str, tuple[Any, str] | None] = {
        "none": None,
        ONE_USER: (secret, "HS256"),
        "HS256": (secret, "HS256"),
        "RS256": (rsa_key, "RS256"),
        "EdDSA": (ed_key, "EdDSA"),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    costs: dict[str, list[float]] = {name: [] for name in kinds}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "secret").write_text(secret)
        (directory / "keys.pem").write_bytes(
            b"".join(
                key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                for key in (ed_key, rsa_key)
            )
        )
        port_of_redis, _ = stack.enter_context(running_redis(directory, available_cores().client))
        flags = ["--auth", "required", "--auth-secret-file", str(directory / "secret")]
        flags += ["--auth-keys-file", str(directory / "keys.pem")]
        identifying = stack.enter_context(serving(directory, port_of_redis, *flags))
        open_to_all = stack.enter_context(serving(directory, port_of_redis, name="anonymous"))
        for _ in range(rounds):
            for name, kind in kinds.items():
                port, _, server = open_to_all if kind is None else identifying
                now = time.time()
                requests = []
                for number in range(clients):
                    user = "one" if name == ONE_USER else f"u{number}"
                    own = None if kind is None else token(*kind, user, now, now + 600)
                    requests.append((port, request(own)))
                crowd = Crowd(lambda _one, _payload: None)
                cpu, begun = server.cpu_seconds(), time.monotonic()
                crowd.open_all(requests, at_a_time=AT_A_TIME, deadline_seconds=OPEN_SECONDS)
                rates[name].append(clients / (time.monotonic() - begun))
                costs[name].append((server.cpu_seconds() - cpu) / clients * 1e6)
                crowd.close()
                time.sleep(1)  # the ends of these connections count for none of the next
    for name in kinds:
        click.echo(
            f"{name:15} {statistics.median(rates[name]):7,.0f} connects/s, "
            f"{statistics.median(costs[name]):5.0f} µs of the server's CPU each "
            f"({min(costs[name]):.0f} to {max(costs[name]):.0f})"
        )


if __name__ == "__main__":
    try:
        main()
    except RigError as error:
        click.echo(f"bench.identity: error: {error}", err=True)
        sys.exit(1)
