"""Check the load client with a server that loses, repeats and reorders messages."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
import trio_websocket

from bench.load import Endpoint, Load, Workload, run_load
from bench.measure import price_topics
from bench.rig import Cores, running_redis
from bench.servers import subscribe_json, subscribe_path
from streamer.wire.frames import compressed_text_frame, text_frame

PUBLISHED = 10
PIECE_BYTES = 700
MARKER = b"~"


@attrs.frozen
class Script:
    """A stream with known defects, and the report that the load client must give of it."""

    name: str
    frames: Sequence[str]
    expected: dict[str, int]


def _message(counter: int, **fields: Any) -> dict[str, Any]:
    return {"type": "price_update", **fields, "~": [0, counter, 1]}


def _plain(*counters: int) -> list[str]:
    return [json.dumps(_message(counter)) for counter in counters]


def _numbered(*pairs: tuple[int, int | None]) -> list[str]:
    """(sequence, previous); the counter is the sequence less one."""
    return [
        json.dumps(
            _message(
                sequence - 1,
                sequence=sequence,
                **({} if previous is None else {"previous": previous}),
            )
        )
        for sequence, previous in pairs
    ]


SCRIPTS = (
    Script("all there", _plain(*range(10)), {"updates": 10, "lost": 0, "undelivered": 0}),
    Script(
        "a batch, indented",
        [json.dumps({"type": "batch", "messages": [_message(i) for i in range(10)]}, indent=1)],
        {"updates": 10, "lost": 0, "undelivered": 0, "malformed": 0},
    ),
    Script("two lost", _plain(0, 1, 4, 5, 6, 7, 8, 9), {"lost": 2, "undelivered": 0}),
    Script("the first lost", _plain(*range(1, 10)), {"lost": 1}),
    Script("the last two not there", _plain(*range(8)), {"lost": 0, "undelivered": 2}),
    Script("one twice", _plain(*range(10), 9), {"duplicates": 1, "out_of_order": 0, "lost": 0}),
    Script("two swapped", _plain(0, 2, 1, *range(3, 10)), {"out_of_order": 1, "lost": 0}),
    Script(
        "merged, and it says so",
        _numbered((1, None), (2, None), (7, 2), (8, None), (10, 8)),
        {"merged": 5, "lost": 0, "undelivered": 0},
    ),
    Script(
        "merged, but it says too little",
        _numbered((1, None), (2, None), (7, 4), (8, None), (10, None)),
        {"merged": 2, "lost": 3},
    ),
    Script(
        "a gap announced",
        [*_numbered((1, None)), '{"type":"gap"}', *_numbered((6, None), (7, None))],
        {"gaps": 1, "lost": 0, "undelivered": 3},
    ),
    Script("no JSON", [*_plain(*range(10)), '{"~":[0,1'], {"malformed": 1, "lost": 0}),
    Script("an error", [*_plain(*range(10)), '{"type":"error"}'], {"errors": 1, "lost": 0}),
)


_UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"  # of the load client's only key
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)
_STREAMING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
_SUBSCRIBED = b'{"type":"subscribed"}'
_CURSOR = b"id: 1~TAG00000a.epoch~TAG00001a.epoch\n\n"


def _compressed(texts: Sequence[bytes]) -> bytes:
    """Return a WebSocket whose messages refer to those before them; the first one is plain."""
    compressor = zlib.compressobj(wbits=-15)
    frames = [text_frame(_SUBSCRIBED)]
    for text in texts:
        payload = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
        frames.append(compressed_text_frame(payload.removesuffix(b"\x00\x00\xff\xff")))
    return _UPGRADED + b"".join(frames)


def _alone(texts: Sequence[bytes]) -> bytes:
    """Return a WebSocket with messages that each end a stream of DEFLATE, the first one too."""
    frames = []
    for text in [_SUBSCRIBED, *texts]:
        compressor = zlib.compressobj(wbits=-15)
        frames.append(compressed_text_frame(compressor.compress(text) + compressor.flush() + b"\0"))
    return _UPGRADED + b"".join(frames)


def _events(texts: Sequence[bytes]) -> bytes:
    """Return events with cursors, in which the marker's byte occurs, and comments."""
    lines = [b"".join(text.split(b"\n")) for text in texts]
    events = [b"data: %b\n%b:\n\n" % (line, _CURSOR) for line in lines]
    return _STREAMING + b"data: %b\n\n" % _SUBSCRIBED + _CURSOR + b"".join(events)


WIRES: Mapping[str, Callable[[Sequence[bytes]], bytes]] = {
    "compressed": _compressed,
    "compressed alone": _alone,
    "events": _events,
}
"""Other ways to send a script: the whole of what a server sends."""


async def check() -> list[str]:
    """Play every script to the load client; return the errors of its reports.

    Raises:
        RigError: a part of the rig is not available, or failed.
    """
    wrong = []
    with tempfile.TemporaryDirectory(prefix="fanout-") as name:
        core = Cores.available().client
        with running_redis(Path(name), core) as (redis_port, _):
            for script in SCRIPTS:
                sample = (await _play(script, redis_port))["sample"]
                found = {key: sample[key] for key in script.expected}
                if found != script.expected:
                    wrong.append(f"{script.name}: {found} instead of {script.expected}")
                for wire, encode in WIRES.items():
                    wrong += await check_wire(wire, encode, script, redis_port)
    return wrong


async def check_wire(
    wire: str, encode: Callable[[Sequence[bytes]], bytes], script: Script, redis_port: int
) -> list[str]:
    """Play a script to a connection that is parsed and to one that only counts."""
    texts = [frame.encode() for frame in script.frames]
    report = await _play_bytes(encode(texts), redis_port, sse=wire == "events")
    found = {key: report["sample"][key] for key in script.expected}
    wrong = []
    if found != script.expected:
        wrong.append(f"{script.name}, {wire}: {found} instead of {script.expected}")
    markers = 2 * sum(text.count(MARKER) for text in texts)
    if abs(report["messages"] - markers) > 1:  # of compressed frames, the mean is counted
        wrong.append(f"{script.name}, {wire}: {report['messages']} messages instead of {markers}")
    return wrong


async def _play_bytes(sent: bytes, redis_port: int, *, sse: bool) -> dict[str, Any]:
    """Send the same bytes, in pieces, to each of two connections, the parsed one first."""

    async def client(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        for start in range(0, len(sent), PIECE_BYTES):
            await stream.send_all(sent[start : start + PIECE_BYTES])
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, client, 0, host="127.0.0.1", handler_nursery=nursery)
        )
        port = listeners[0].socket.getsockname()[1]
        load = Load(PUBLISHED, 1.0, sample=1, warmup_seconds=0, settle_seconds=0.1, in_flight=1)
        endpoint = Endpoint(
            port,
            redis_port,
            subscribe_path,
            ack='"subscribed"',
            acks=1,
            deflate=not sse,
            sse=sse,
        )
        workload = Workload(load, price_topics(1), [[0], [0]])
        core = Cores.available().client
        report = await trio.to_thread.run_sync(
            lambda: run_load(workload, endpoint, core=core, on_event=lambda _: None)
        )
        nursery.cancel_scope.cancel()
    return report


async def _play(script: Script, redis_port: int) -> dict[str, Any]:
    async def client(request: trio_websocket.WebSocketRequest) -> None:
        connection = await request.accept()
        await connection.get_message()
        await connection.send_message('{"subscribed":1}')
        for frame in script.frames:
            await connection.send_message(frame)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(trio_websocket.serve_websocket, client, "127.0.0.1", 0, ssl_context=None)
        )
        load = Load(PUBLISHED, 1.0, sample=1, warmup_seconds=0, settle_seconds=0.1)
        endpoint = Endpoint(server.port, redis_port, subscribe_json, ack='"subscribed"', acks=1)
        workload = Workload(load, price_topics(1), [[0]])
        core = Cores.available().client
        report = await trio.to_thread.run_sync(
            lambda: run_load(workload, endpoint, core=core, on_event=lambda _: None)
        )
        nursery.cancel_scope.cancel()
    return report
