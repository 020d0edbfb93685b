"""Attacks by producers, and by what Redis holds or does."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from typing import Any, Final
from urllib.request import urlopen

import redis as redis_py
import trio

from streamer.broker.keys import history_key, position_key
from streamer.client import open_client
from streamer.source.sequencer import TOTAL_HELD_BYTES
from tests.abuse.attack import Target, attack
from tests.abuse.flood import flood, price
from tests.abuse.tools import client, names

GREATEST: Final = 2**53 - 1

_MAX_HELD_BYTES: Final = TOTAL_HELD_BYTES + 2**25
"""Held publications, and what is on its way from Redis."""


def _connect(target: Target) -> redis_py.Redis:
    return redis_py.Redis.from_url(target.redis_url)


@attack(redis_user=("~*", "+@all", "resetchannels", "&stock:*", "&streamer*"))
async def forbidden_channels(target: Target) -> str | None:
    """Subscribe to a family of channels that the server's Redis user may not read."""
    async with client(target) as attacker:
        answer = await attacker.request(
            type="subscribe", subscription_type="market", targets=["KOSPI"]
        )
        await trio.sleep(target.seconds - 2)
        if answer.get("targets"):
            return f"acknowledged: {answer}"
    return None


@attack()
async def strange_history(target: Target) -> str | None:
    """Positions and histories in Redis with values that no publisher of this version writes."""
    text = price("strange", 1)
    with _connect(target) as redis:
        for number, (epoch, sequence, fields) in enumerate(
            [
                ("e", "1", {"m": text, "t": "1", "k": "trades"}),
                ("e", "1", {"m": text, "x": "1"}),
                ("e", "1", {}),
                ("e", "abc", {"m": text, "t": "1", "k": "price"}),
                ("e", str(2**53), {"m": text, "t": "1", "k": "price"}),
                ("e", "1e300", {"m": text, "t": "1", "k": "price"}),
                ("e", "-5", {"m": text, "t": "1", "k": "price"}),
                ("e" * 5000, "1", {"m": text, "t": "1", "k": "price"}),
                ("\x00\xff", "1", {"m": text, "t": "x", "k": "price"}),
            ]
        ):
            topic = f"stock:strange{number}"
            redis.hset(position_key(topic), mapping={"epoch": epoch, "sequence": sequence})
            if fields:
                redis.xadd(history_key(topic), fields, id="1-0")
            else:
                redis.set(history_key(topic), "no stream")
        redis.set(position_key("stock:strange9"), "no hash")
    targets = names("strange", 10)
    async with client(target) as attacker:
        await attacker.request(type="subscribe", subscription_type="stock", targets=targets)
        for name in targets:
            await attacker.request(
                type="subscribe",
                subscription_type="stock",
                targets=[name],
                since={name: {"epoch": "e", "sequence": 0}},
            )
        await trio.sleep(target.seconds - 3)
    return None


@attack()
async def greatest_sequence(target: Target) -> str | None:
    """Publish to the neighbour's topic at the greatest sequence of the present epoch."""
    with _connect(target) as redis:
        epoch = redis.hget(position_key("stock:neighbour"), "epoch")
        assert isinstance(epoch, bytes)
        for sequence in (GREATEST, GREATEST - 5, 10**6):
            publication = json.loads(price("neighbour", 0))
            publication |= {"epoch": epoch.decode(), "sequence": sequence}
            redis.publish("stock:neighbour:price", json.dumps(publication))
            await trio.sleep(target.seconds / 4)
    return None


@attack()
async def planted_history(target: Target) -> str | None:
    """A history with texts that are no JSON, or no publication of the topic."""
    texts = [b"garbage", b'{"type":"price_update"', b"", b"[]", b'{"type":"gap"}', b"\xff\xfe{}"]
    with _connect(target) as redis:
        redis.hset(position_key("stock:planted"), mapping={"epoch": "e", "sequence": len(texts)})
        for number, text in enumerate(texts, 1):
            fields: dict[Any, Any] = {"m": text, "t": "1", "k": "price"}
            redis.xadd(history_key("stock:planted"), fields, id=f"{number}-0")
    try:
        async with client(target) as attacker:
            for _ in range(3):
                await attacker.request(
                    type="subscribe",
                    subscription_type="stock",
                    targets=["planted"],
                    since={"planted": {"epoch": "e", "sequence": 0}},
                )
            with trio.move_on_after(target.seconds / 2):
                while True:
                    await attacker.message()
    except ValueError as error:
        return f"a client received what is no JSON: {error}"
    return None


@attack()
async def poisonous_numbers(target: Target) -> str | None:
    """Publish what a client could not read: it goes on with what comes after that."""
    received: list[int] = []

    async def victim() -> None:
        async with open_client(f"ws://127.0.0.1:{target.port}/v1/ws") as reader:
            await reader.subscribe(["stock:poison"], delta=True)
            async for event in reader:
                number = int(getattr(event, "volume", 0))
                received.append(number)

    plain = price("poison", 1)
    nested = b"[" * 1000 + b"]" * 1000
    poison = [
        plain.replace(b'"price": 1', b'"price": 1E-99999999999999999999'),
        plain.replace(b'"price": 1', b'"price": 1E-30000000'),
        plain.replace(b'"price": 1', b'"price": ' + b"9" * 5000),
        plain.replace(b'"padding": ""', b'"padding": ' + nested),
        plain.replace(b'"padding": ""', b'"messages": [1, 2, 3]'),
        plain.replace(b'"padding": ""', b'"padding": "\\ud800"'),
    ]
    sides = b'"bids":[{"price":1,"quantity":2,"\\ud800":0}],"asks":[]'
    books = [
        b'{"type":"orderbook_update","stock_code":"poison",%b}' % sides,
        b'{"type":"orderbook_delta","stock_code":"poison",%b}' % sides,
        b'{"type":"orderbook_update","stock_code":"poison","checksum":[],%b}' % sides,
    ]
    with trio.move_on_after(target.seconds + 10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim)
            await trio.sleep(1)
            with _connect(target) as redis:
                for text in poison:
                    redis.publish("stock:poison:price", text)
                    await trio.sleep(0.2)
                for text in books:
                    redis.publish("stock:poison:orderbook", text)
                    await trio.sleep(0.2)
                redis.publish("stock:poison:price", price("poison", 777))
            while 777 not in received:  # noqa: ASYNC110 - it is in another task's list
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        return None
    return f"the client has received {received}, and not what came last"


@attack()
async def rejected_publications(target: Target) -> str | None:
    """Publish what does not fit its channel, by the thousand."""
    with _connect(target) as redis:
        async with client(target) as attacker:
            await attacker.subscribe(["rubbish"])
            for _ in range(round(target.seconds * 5)):
                with redis.pipeline(transaction=False) as pipe:
                    for text in (b"{", b"null", b'{"type":"alert"}', b"\xff" * 1000):
                        for _ in range(25):
                            pipe.publish("stock:rubbish:price", text)
                    pipe.execute()
                await trio.sleep(0.2)
    return None


@attack(seconds=8)
async def publications_beyond_the_bound(target: Target) -> str | None:
    """Publications larger than the server takes, live and in the history."""
    await flood(target, ["huge"], count=3, size=200)
    async with client(target) as attacker:
        await attacker.subscribe(["huge"])
        await flood(target, ["huge"], count=20, size=2_000_000, seconds=target.seconds - 4)
    return None


# Redis itself is busy with so many bytes; the history of the topics is memory that others keep.
@attack("--max-history-bytes", "10000000", seconds=10, judges_delays=False)
async def positions_that_cannot_be_read(target: Target) -> str | None:
    """Cut the server's questions to Redis, while publications pile up that must wait for them."""
    codes = names("held", 100)
    peak_bytes = before_bytes = await trio.to_thread.run_sync(_resident_bytes, target.http_port)

    async def cut() -> None:
        with _connect(target) as redis:
            while True:
                for connection in redis.client_list(_type="normal"):
                    name = connection["name"]
                    if name.startswith("streamer-") and "publisher" not in name:
                        with suppress(redis_py.ResponseError):  # it has gone
                            redis.client_kill_filter(_id=connection["id"])
                await trio.sleep(0.01)

    async def watch() -> None:
        nonlocal peak_bytes
        while True:
            resident_bytes = await trio.to_thread.run_sync(_resident_bytes, target.http_port)
            peak_bytes = max(peak_bytes, resident_bytes)
            await trio.sleep(0.1)

    async with client(target) as attacker, trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        nursery.start_soon(watch)
        nursery.start_soon(attacker.subscribe, codes)
        await flood(target, codes, count=60, size=20_000, seconds=target.seconds - 4)
        nursery.cancel_scope.cancel()
    grown_bytes = peak_bytes - before_bytes
    if grown_bytes > _MAX_HELD_BYTES:
        return f"{grown_bytes / 2**20:.0f} MiB were held"
    return None


def _resident_bytes(http_port: int) -> int:
    with urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as answer:
        for line in answer:
            if line.startswith(b"process_resident_memory_bytes "):
                return int(float(line.split()[1]))
    raise ValueError("the metrics have no resident memory")


@attack(seconds=25, judges_delays=False)
async def restores_while_redis_is_silent(target: Target) -> str | None:
    """Six clients restore their sessions while Redis answers nothing: all in one bounded time."""
    waited: list[float] = []
    async with client(target) as attacker:
        await attacker.message()
        answer = await attacker.request(
            type="subscribe", subscription_type="stock", targets=names("silent", 20)
        )
    positions = {
        f"stock:{name}": position for name, position in answer.get("positions", {}).items()
    } or {"stock:silent0": {"epoch": "e", "sequence": 3}}

    async def restore(number: int) -> None:
        async with client(target) as attacker:
            began = trio.current_time()
            await attacker.request(
                type="reconnect", session_id=f"s-unknown{number}", positions=positions
            )
            waited.append(trio.current_time() - began)

    os.kill(target.redis_pid, signal.SIGSTOP)
    try:
        with trio.move_on_after(target.seconds - 2):
            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(restore, number)
    finally:
        os.kill(target.redis_pid, signal.SIGCONT)
    if len(waited) < 6 or max(waited) > 11:
        return f"answered after {', '.join(f'{seconds:.1f}' for seconds in waited)} s of six"
    return None
