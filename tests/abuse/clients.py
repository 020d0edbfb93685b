"""Attacks by clients, one function for each line."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, suppress
from itertools import pairwise

import trio

from tests.abuse.attack import Target, attack
from tests.abuse.flood import flood
from tests.abuse.tools import (
    GONE,
    PONG,
    TEXT,
    client,
    crowd,
    dial,
    frame,
    names,
    read_all,
    request_frame,
)
from tests.helpers.http import http_client


@attack()
async def tiny_max_rate(target: Target) -> str | None:
    """Subscribe with `max_rate` 1e-320 to 1e-309, and leave."""

    async def run(number: int) -> None:
        async with client(target) as attacker:
            for rate in ("1e-320", "1e-309", "5e-324"):
                message = (
                    '{"type":"subscribe","subscription_type":"stock","targets":["neighbour"],'
                    f'"max_rate":{rate}}}'
                )
                await attacker.send_frame(TEXT, message.encode())
            await trio.sleep(0.2)

    await crowd(4, run, target.seconds)
    return None


@attack()
async def clients_return_from_silence(target: Target) -> str | None:
    """Five clients of one address lose the network without a word, and come back."""
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(client(target, "127.2.0.1"))
        await trio.sleep(1)
        for _ in range(5):
            async with client(target, "127.2.0.1") as attacker:
                with suppress(EOFError):
                    await attacker.message()
                    await attacker.request(type="ping")
                if attacker.close_code not in {None, 1013}:
                    return f"closed with {attacker.close_code}: such a client never returns"
    return None


@attack("--heartbeat-interval-seconds", "1", "--heartbeat-timeout-seconds", "2", seconds=12)
async def slow_recovery(target: Target) -> str | None:
    """Restore a long history and read it slowly, while pings are answered."""
    await flood(target, names("slow", 1), count=900, size=2000, positioned=True)
    async with client(target) as attacker:
        answer = await attacker.request(
            type="subscribe", subscription_type="stock", targets=["slow0"]
        )
        epoch = answer["positions"]["slow0"]["epoch"]
        since = {"slow0": {"epoch": epoch, "sequence": 1}}
        await attacker.send(
            type="subscribe", subscription_type="stock", targets=["slow0"], since=since
        )
        try:
            with trio.move_on_after(target.seconds - 2):
                while True:
                    await attacker.message()
                    await trio.sleep(0.005)
        except GONE:
            return "a client that answers each ping was given up"
    return None


@attack("--heartbeat-interval-seconds", "4", seconds=16)
async def pings_while_others_connect(target: Target) -> str | None:
    """Others connect all the time: each client is still pinged within 4 to 6 s."""
    pings: list[float] = []

    async def watch() -> None:
        async with client(target) as attacker:
            attacker.pinged_at = pings
            while True:
                await attacker.message()

    async def connect(number: int) -> None:
        async with client(target):
            await trio.sleep(0.3 + number / 10)

    with trio.move_on_after(target.seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(crowd, 10, connect, target.seconds)
    gaps = [later - earlier for earlier, later in pairwise(pings)]
    if len(gaps) < 2 or max(gaps) > 6.5:
        return f"pinged after {', '.join(f'{gap:.1f}' for gap in gaps)} s"
    return None


@attack(seconds=10)
async def sessions_of_500_topics(target: Target) -> str | None:
    """Connect, subscribe to 500 topics, leave; 20 times a second."""

    async def run(number: int) -> None:
        async with client(target, "127.2.0.2") as attacker:
            await attacker.subscribe([f"{name}-{time.monotonic_ns()}" for name in names("s", 500)])
            with trio.move_on_after(0.2):
                await read_all(attacker)

    await crowd(4, run, target.seconds)
    return None


@attack(seconds=10)
async def fresh_names(target: Target) -> str | None:
    """Subscribe to and unsubscribe from names that nobody has had before."""

    async def run(number: int) -> None:
        async with client(target) as attacker, trio.open_nursery() as nursery:
            nursery.start_soon(read_all, attacker)
            while True:
                for type_ in ("subscribe", "unsubscribe"):
                    fresh = names(f"fresh{number}-{time.monotonic_ns() // 10**8}-", 100)
                    await attacker.send(type=type_, subscription_type="stock", targets=fresh)
                await trio.sleep(0.05)

    await crowd(4, run, target.seconds)
    return None


async def _frames(target: Target, payload: bytes, start: bytes = b"", count: int = 4) -> None:
    async def run(number: int) -> None:
        async with client(target, frames=start) as attacker:
            with trio.move_on_after(target.seconds):
                while True:
                    await attacker.stream.send_all(payload)

    await crowd(count, run, target.seconds)


@attack()
async def flood_of_pongs(target: Target) -> str | None:
    """Pongs that nobody asked for, as fast as the socket takes them."""
    await _frames(target, frame(PONG) * 2000)
    return None


@attack()
async def flood_of_empty_continuations(target: Target) -> str | None:
    """Empty continuations of a message, as fast as the socket takes them."""
    await _frames(target, frame(0x00) * 2000, frame(0x01, b"x"))
    return None


@attack()
async def flood_of_requests(target: Target) -> str | None:
    """Requests far over the rate limit."""
    await _frames(target, request_frame(type="ping") * 300)
    return None


@attack(seconds=14)
async def unfinished_handshakes(target: Target) -> str | None:
    """A thousand connections begin a handshake and never end it."""

    async def run(number: int) -> None:
        stream = await dial(target.port)
        try:
            await stream.send_all(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n")
            with suppress(*GONE):
                await stream.receive_some()
        finally:
            await trio.aclose_forcefully(stream)

    await crowd(1000, run, target.seconds)
    return None


@attack(seconds=10)
async def unfinished_messages(target: Target) -> str | None:
    """Connections that leave 65,000 bytes of an unfinished message behind, one after another."""

    async def run(number: int) -> None:
        async with client(target, "127.2.0.3", frames=frame(0x01, b"x" * 65_000)) as attacker:
            await attacker.send_frame(0x00, b"y")

    await crowd(4, run, target.seconds)
    return None


@attack()
async def one_byte_fragments(target: Target) -> str | None:
    """Fifty connections send messages in fragments of one byte."""
    whole = b"".join(frame(0x00, b"a") for _ in range(2000))

    async def run(number: int) -> None:
        async with client(target, frames=frame(0x01, b"a")) as attacker:
            with trio.move_on_after(1):
                while True:
                    await attacker.stream.send_all(whole)

    await crowd(50, run, target.seconds)
    return None


@attack()
async def emoji_in_fragments(target: Target) -> str | None:
    """Fifty messages of emoji in one-byte fragments stay unfinished."""
    emoji = "😀".encode()
    data = b"".join(
        frame(0x00, emoji[index : index + 1]) for _ in range(2000) for index in range(4)
    )

    async def run(number: int) -> None:
        async with client(target, frames=frame(0x01, b"")) as attacker:
            await attacker.stream.send_all(data)
            await read_all(attacker)

    await crowd(50, run, target.seconds)
    return None


@attack()
async def nested_targets(target: Target) -> str | None:
    """Fifty connections subscribe to targets that are lists nested a thousand deep."""
    nested = ("[" * 500 + "]" * 500 + ",") * 60
    message = f'{{"type":"subscribe","subscription_type":"stock","targets":[{nested}1]}}'
    assert len(message) < 65_536

    async def run(number: int) -> None:
        async with client(target) as attacker:
            for _ in range(40):
                await attacker.send_frame(TEXT, message.encode())
            await attacker.request(type="ping")

    await crowd(50, run, target.seconds)
    return None


@attack(seconds=10)
async def stop_reading_in_mode_all(target: Target) -> str | None:
    """Five clients hold 500 topics in mode all, and stop reading."""
    targets = names("all", 500)

    async def run(number: int) -> None:
        async with client(target) as attacker:
            await attacker.subscribe(targets, mode="all")
            await trio.sleep(target.seconds - 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd, 5, run, target.seconds)
        await trio.sleep(1)
        await flood(target, targets, count=20, size=600, seconds=target.seconds - 3)
    return None


@attack(seconds=10)
async def a_hundred_are_cut_together(target: Target) -> str | None:
    """A hundred clients with 500 topics each lose their connections in one moment."""

    async def run(number: int) -> None:
        async with client(target) as attacker:
            await attacker.subscribe(names("cut", 500))
            with trio.move_on_at(cut_at):
                await read_all(attacker)
            attacker.reset()

    cut_at = trio.current_time() + target.seconds - 2
    await crowd(100, run)
    return None


@attack(seconds=14)
async def rates_of_100_000_subscriptions(target: Target) -> str | None:
    """Two hundred clients hold 500 topics with a `max_rate` while 500 publications/s flow."""
    targets = names("rate", 500)

    async def run(number: int) -> None:
        async with client(target) as attacker:
            await attacker.subscribe(targets, max_rate=0.2)
            await read_all(attacker)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd, 200, run, target.seconds)
        await trio.sleep(target.seconds / 2)
        await flood(target, targets, count=6, size=150, seconds=target.seconds / 2 - 1)
        nursery.cancel_scope.cancel()
    return None


@attack(seconds=10)
async def silent_connections_end_together(target: Target) -> str | None:
    """Five thousand connections that never say anything end in one moment."""
    await _silent(target, 5000)
    return None


@attack(descriptors=300, max_log_lines=200)
async def no_descriptors_left(target: Target) -> str | None:
    """Silent connections take the last descriptor that the server may open."""
    await _silent(target, 600)
    return None


async def _silent(target: Target, count: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(count):
            with suppress(OSError):
                stream = await dial(target.port)
                stack.push_async_callback(trio.aclose_forcefully, stream)
        await trio.sleep(target.seconds / 2)


@attack(seconds=10)
async def unread_recoveries(target: Target) -> str | None:
    """Fifty clients ask for what they have missed of a long history, and do not read it."""
    await flood(target, names("long", 1), count=900, size=4500, positioned=True)
    async with client(target) as attacker:
        answer = await attacker.request(
            type="subscribe", subscription_type="stock", targets=["long0"]
        )
    since = {"long0": {"epoch": answer["positions"]["long0"]["epoch"], "sequence": 1}}

    async def run(number: int) -> None:
        async with client(target) as attacker:
            for _ in range(20):
                await attacker.send(
                    type="subscribe", subscription_type="stock", targets=["long0"], since=since
                )
            await trio.sleep(target.seconds - 3)

    await crowd(50, run, target.seconds)
    return None


@attack(max_log_lines=200)
async def refusals_by_the_thousand(target: Target) -> str | None:
    """One address opens connections far over its limit, again and again."""

    async def run(number: int) -> None:
        async with client(target, "127.2.0.4") as attacker:
            await read_all(attacker)

    await crowd(30, run, target.seconds)
    return None


@attack(seconds=2)
async def rebound_name_at_the_operators_port(target: Target) -> str | None:
    """Ask the operator's port for the connections as a web page with a rebound name would."""
    async with http_client() as http:
        url = f"http://127.0.0.1:{target.http_port}/v1/ws/connections"
        answer = await http.get(url, headers={"Host": "evil.example"})
    return "the connections were served" if answer.status_code == 200 else None


async def _usual_client(target: Target) -> str | None:
    for number in range(3):
        async with client(target) as attacker:
            greeting = await attacker.message()
            await attacker.request(
                type="subscribe", subscription_type="stock", targets=["neighbour", "quiet"]
            )
            await trio.sleep(0.3)
        async with client(target) as attacker:
            answer = await attacker.request(type="reconnect", session_id=greeting["session_id"])
            if answer["type"] not in {"reconnected", "error"}:
                return f"answered with {answer['type']}"
        await trio.sleep(target.seconds / 4 - number / 10)
    return None


@attack("--history-seconds", "0")
async def history_seconds_0(target: Target) -> str | None:
    """A usual client, where `history_seconds` is 0."""
    return await _usual_client(target)


@attack("--session-lifetime-seconds", "0", max_log_lines=60)
async def session_lifetime_0(target: Target) -> str | None:
    """A usual client, where `session_lifetime_seconds` is 0."""
    return await _usual_client(target)


@attack("--history-length", "0", max_log_lines=60)
async def history_length_0(target: Target) -> str | None:
    """A usual client, where `history_length` is 0."""
    return await _usual_client(target)
