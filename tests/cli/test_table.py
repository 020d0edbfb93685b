"""The live table of `streamer listen`, on a terminal of its own.

Covers streamer.cli.screen and streamer.cli.similar_topics.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
import trio

from streamer.cli.similar_topics import find_similar
from streamer.client import SubscriptionType, Topic
from streamer.server import Server
from tests.cli.terminals import ENTER, LEAVE, Terminal, on_terminal
from tests.helpers.server import publish, running_server
from tests.helpers.timing import PACE_SECONDS, eventually


def price(code: str, number: str = "72500.10", **more: Any) -> bytes:
    """Return a price."""
    members = {"stock_code": code, "change": -50, "change_percent": 0.5, "volume": 1234567, **more}
    return json.dumps(members).encode()[:-1] + f', "price": {number}}}'.encode()


def arguments(server: Server, *more: str) -> list[str]:
    """Return the arguments of Python."""
    return ["-m", "streamer", "listen", "--url", server.websocket_url, *more]


async def test_rows_are_stocks_with_their_names(nursery: trio.Nursery) -> None:
    """A stock that comes by two topics is one row; digits are grouped; the end is printed."""
    async with running_server() as server:
        publish(server, "market:KOSPI:status", b'{"market":"KOSPI","status":"open"}')
        topics = ("stock:005930", "market:KOSPI", "sector:IT")
        async with on_terminal(arguments(server, *topics)) as terminal:
            await terminal.shown("waiting")
            assert terminal.output.startswith(ENTER) or ENTER in terminal.output
            for code, name in (("005930", "Samsung"), ("035420", "NAVER")):
                publish(server, "sector:IT:price", price(code, "1234567.10", name=name))
            publish(server, "stock:005930:price", price("005930", "1234568.10", name="Samsung"))
            publish(server, "market:KOSPI:status", b'{"market":"KOSPI","status":"open"}')
            await terminal.shown("1,234,568.10")
            await terminal.shown("NAVER")
            lines = await terminal.shown("open")
            assert sum("005930" in line for line in lines) == 1
            (samsung,) = [line for line in lines if "005930" in line]
            assert samsung.split()[1:7] == [
                "Samsung",
                "1,234,568.10",
                "-50",
                "+0.5",
                "%",
                "1,234,567",
            ]
            terminal.process.send_signal(signal.SIGINT)
            await terminal.process.wait()
            await eventually(lambda: "received" in terminal.after)
            assert "1,234,568.10" in terminal.after
            assert "Traceback" not in terminal.after


async def test_more_rows_than_the_screen_can_be_scrolled() -> None:
    """By keys, to both ends; the place is shown, and a window that grows shows more rows."""
    codes = [f"C{number:02}" for number in range(30)]
    async with running_server() as server:
        topics = [f"stock:{code}" for code in codes]
        async with on_terminal(arguments(server, *topics), height=12) as terminal:

            def rows() -> list[str]:
                return [line.split()[0] for line in terminal.lines if line.startswith("C")]

            await terminal.shown("rows 1-10 of 30")
            assert rows() == codes[:10]
            for keys, first in (
                (b"\x1b[B", 1),
                (b"jj", 3),
                (b"\x1b[6~", 13),
                (b"\x1bOA", 12),
                (b"G", 20),
                (b"\x1b[B", 20),
                (b"\x1b[H", 0),
            ):
                terminal.type(keys)
                await terminal.shown(f"rows {first + 1}-{first + 10} of 30")
                assert rows() == codes[first : first + 10]
            terminal.resize(120, 40)
            await eventually(lambda: rows() == codes)


ENDS: list[Callable[[Terminal], object]] = [
    lambda terminal: terminal.process.send_signal(signal.SIGINT),
    lambda terminal: terminal.process.send_signal(signal.SIGTERM),
    lambda terminal: terminal.type(b"\x03"),
]


@pytest.mark.parametrize("end", ENDS, ids=["SIGINT", "SIGTERM", "Ctrl-C"])
async def test_the_screen_is_restored(end: Callable[[Terminal], object]) -> None:
    """However it is ended."""
    async with (
        running_server() as server,
        on_terminal(arguments(server, "stock:A")) as terminal,
    ):
        await terminal.shown("waiting")
        assert ENTER in terminal.output
        end(terminal)
        await terminal.process.wait()
        await eventually(lambda: LEAVE in terminal.output)
        assert terminal.shows_keys
        assert terminal.process.returncode == 0


async def test_the_screen_is_restored_after_a_crash() -> None:
    """The traceback is on the usual screen, where it can be read."""
    crash = (
        "import sys\n"
        "from streamer.cli import main\n"
        "from streamer.cli.board import Board\n"
        "def show(self, event):\n"
        "    raise ZeroDivisionError('a fault of the table')\n"
        "Board.show = show\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    async with running_server() as server:
        command = ["-c", crash, *arguments(server, "stock:A")[2:]]
        async with on_terminal(command) as terminal:
            await terminal.shown("waiting")
            publish(server, "stock:A:price", price("A"))
            await terminal.process.wait()
            await eventually(lambda: "a fault of the table" in terminal.after)
            assert terminal.shows_keys
            assert terminal.output.count(ENTER) == terminal.output.count(LEAVE) == 1


async def test_a_suspended_table_leaves_the_screen() -> None:
    """Ctrl-Z gives the shell its screen; continued, the table comes back."""
    async with (
        running_server() as server,
        on_terminal(arguments(server, "stock:A")) as terminal,
    ):
        await terminal.shown("waiting")
        terminal.type(b"\x1a")
        await eventually(lambda: LEAVE in terminal.output)
        await eventually(lambda: terminal.is_stopped)
        assert terminal.shows_keys
        terminal.process.send_signal(signal.SIGCONT)
        await eventually(lambda: terminal.output.count(ENTER) == 2)
        publish(server, "stock:A:price", price("A"))
        await terminal.shown("72,500.10")


async def test_a_topic_without_a_producer_gets_a_hint() -> None:
    """With what the server knows that is written almost like it."""

    async def publish_without_end(server: Server) -> None:
        while True:
            publish(server, "sector:Semiconductors:price", price("A"))
            await trio.sleep(PACE_SECONDS)

    async with running_server() as server, trio.open_nursery() as publishing:
        publishing.start_soon(publish_without_end, server)
        command = arguments(server, "sector:semiconductors", "stock:none")
        async with on_terminal(command) as terminal:
            await terminal.shown(
                "sector:semiconductors: no publication seen; the server knows sector:Semiconductors"
            )
            lines = await terminal.shown("stock:none: no publication seen")
            assert not any("stock:none" in line and "knows" in line for line in lines)
        publishing.cancel_scope.cancel()


async def test_similar_topics_are_those_with_publications() -> None:
    """In another case or of another type; without a server there are none."""
    async with running_server() as server:
        publish(server, "sector:IT:price", price("A"))
        topic = Topic(SubscriptionType.STOCK, "it")
        found = await find_similar(server.websocket_url, [topic])
        assert found == {topic: [Topic(SubscriptionType.SECTOR, "IT")]}
    assert await find_similar(server.websocket_url, [topic]) == {}
