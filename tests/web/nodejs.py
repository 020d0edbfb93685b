"""Node.js and what tests run in it: streamer.js as a client that a test controls."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from tests.web.driver import node

HERE: Final = Path(__file__).parent
WEB: Final = HERE.parents[1] / "streamer" / "web"
MODULE: Final = WEB / "streamer.js"


class Program:
    """A program in Node that reads lines of JSON and writes such lines."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = b""

    async def send(self, value: object) -> None:
        """Write a line to it."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(value).encode() + b"\n")

    async def receive(self) -> Any:
        """Return its next line. Raises EOFError when it has ended."""
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            data = await self._process.stdout.receive_some()
            if not data:
                raise EOFError(f"it ended after {self._received!r}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


@asynccontextmanager
async def running(
    script: Path, *arguments: str, options: Sequence[str] = ()
) -> AsyncIterator[Program]:
    """A program, killed in the end; `options` are those of Node itself."""
    process = await trio.lowlevel.open_process(
        [str(node()), "--no-warnings", *options, str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        try:
            yield Program(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


class Remote:
    """A `Streamer` in another process; made by `remote`."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._events: deque[tuple[str, Any]] = deque()
        self._arrival = trio.lowlevel.ParkingLot()
        self._ids = itertools.count(1)

    async def read(self) -> None:
        """Take events in until cancelled."""
        while True:
            line = await self._program.receive()
            self._events.append((line["event"], line["value"]))
            self._arrival.unpark_all()

    async def do(self, command: str, **values: Any) -> None:
        """Carry out a command."""
        await self._program.send({"command": command, **values})

    async def subscribe(self, *topics: str, **options: Any) -> int:
        """Subscribe; returns a number by which `update` and `unsubscribe` name the subscription."""
        number = next(self._ids)
        await self.do("subscribe", id=number, topics=topics, options=options)
        return number

    async def ready(self, number: int) -> list[list[str]]:
        """Wait for the server's answer; returns the refusals: topic and code of each."""
        refusals: list[list[str]] = (await self.event("ready", lambda v: v["id"] == number))[
            "refusals"
        ]
        return refusals

    async def event(self, name: str, condition: Callable[[Any], object] = lambda _: True) -> Any:
        """Wait for the first event of this name that meets the condition, and take it out."""
        while True:
            for event in self._events:
                if event[0] == name and condition(event[1]):
                    self._events.remove(event)
                    return event[1]
            await self._arrival.park()

    async def update(self, number: int = 1) -> Any:
        """Return the next message of a subscription, the first one unless another is named."""
        return (await self.event("update", lambda value: value["id"] == number))["message"]

    async def state(self, state: str) -> Any:
        """Wait for a change to this state."""
        return await self.event("state", lambda value: value["state"] == state)

    async def ask(self, command: str, **values: Any) -> Any:
        """Return the answer to a question: account, position, look."""
        await self.do(command, **values)
        return await self.event(command)

    def waiting(self, name: str) -> list[Any]:
        """The events of this name that have arrived and were not taken out."""
        return [value for event, value in self._events if event == name]


@asynccontextmanager
async def remote(
    url: str, *, asks_for_token: bool = False, is_blocked: bool = False, **options: Any
) -> AsyncIterator[Remote]:
    """A client that connects to this URL; its delays are short unless `options` say otherwise.

    `is_blocked`: it can open no WebSocket.
    """
    short = {"firstDelayMs": 20, "maxDelayMs": 200}
    async with running(HERE / "remote.mjs", str(MODULE)) as program, trio.open_nursery() as nursery:
        client = Remote(program)
        nursery.start_soon(client.read)
        await client.do(
            "open",
            url=url,
            options=short | options,
            asksForToken=asks_for_token,
            isBlocked=is_blocked,
        )
        yield client
        nursery.cancel_scope.cancel()
