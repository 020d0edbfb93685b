"""The live table of `streamer listen`: a board on a screen that can be scrolled."""

import math
import ssl
from collections.abc import Sequence
from typing import Final

import attrs
import trio
from rich.console import Console

from streamer.cli.board import Board
from streamer.cli.screen import Screen, open_screen
from streamer.client import Client, Topic
from streamer.nursery import open_background_nursery

_REFRESH_SECONDS: Final = 0.25
_HINT_SECONDS: Final = 3.0
"""How long a topic may be silent before its row gets a hint, if it never had a publication."""

_UP: Final = frozenset({b"\x1b[A", b"\x1bOA", b"k"})
_DOWN: Final = frozenset({b"\x1b[B", b"\x1bOB", b"j"})
_PAGE_UP: Final = frozenset({b"\x1b[5~", b"b"})
_PAGE_DOWN: Final = frozenset({b"\x1b[6~", b" "})
_TOP: Final = frozenset({b"\x1b[H", b"\x1bOH", b"\x1b[1~", b"g"})
_BOTTOM: Final = frozenset({b"\x1b[F", b"\x1bOF", b"\x1b[4~", b"G"})


@attrs.frozen(kw_only=True)
class ListenedServer:
    """The server that the client is connected to, to ask it about topics."""

    url: str
    token: str | None
    ssl_context: ssl.SSLContext | None


async def show_table(
    client: Client, topics: Sequence[Topic], *, count: int | None, server: ListenedServer
) -> None:
    """Show the messages of a client until `count` of them, or until cancelled.

    When the screen has been left, the last state of the table is printed.
    """
    board = Board(topics)
    try:
        with open_screen() as screen:
            table = _Table(client, board, screen)
            async with open_background_nursery() as nursery:
                await nursery.start(screen.handle_suspension)
                nursery.start_soon(screen.read_keys, table.on_key)
                nursery.start_soon(_hint, client, board, server)
                await table.show(math.inf if count is None else count)
    finally:
        console = Console()
        console.print(board.render(client.account(), client.statistics(), width=console.size.width))


class _Table:
    """A board, and the part of it that is on the screen."""

    def __init__(self, client: Client, board: Board, screen: Screen) -> None:
        self._client = client
        self._board = board
        self._screen = screen
        self._offset = 0
        self._refresh = trio.CancelScope()

    async def show(self, left: float) -> None:
        """Show messages as they come, and draw them at intervals and after each key."""
        while left > 0:
            self._draw()
            refresh_at = trio.current_time() + _REFRESH_SECONDS
            with trio.CancelScope(deadline=refresh_at) as self._refresh:
                while left > 0 and trio.current_time() < refresh_at:
                    self._board.show(await self._client.receive())
                    left -= 1

    def _draw(self) -> None:
        width, height = self._screen.size
        board, client = self._board, self._client
        self._screen.draw(
            board.render(
                client.account(),
                client.statistics(),
                width=width,
                height=height,
                offset=self._offset,
            )
        )

    def on_key(self, key: bytes) -> None:
        """Scroll."""
        room = self._board.room(self._screen.size[1])
        steps = {**dict.fromkeys(_UP, -1), **dict.fromkeys(_DOWN, 1)}
        steps |= dict.fromkeys(_PAGE_UP, -room) | dict.fromkeys(_PAGE_DOWN, room)
        steps |= dict.fromkeys(_TOP, -(10**9)) | dict.fromkeys(_BOTTOM, 10**9)
        if key in steps:
            self._offset = self._board.clamped(self._offset + steps[key], room)
            self._refresh.cancel()


async def _hint(client: Client, board: Board, server: ListenedServer) -> None:
    """Say which topics never had a publication, and what they may be called instead."""
    # Imported here, since the library for HTTP takes long.
    from streamer.cli.similar_topics import find_similar  # noqa: PLC0415

    await trio.sleep(_HINT_SECONDS)
    similar: dict[Topic, list[Topic]] | None = None
    while True:
        unknown = [topic for topic in board.silent if not _has_publications(client, topic)]
        if similar is None and unknown:
            similar = await find_similar(
                server.url, unknown, token=server.token, ssl_context=server.ssl_context
            )
        board.hints = [_hint_text(topic, (similar or {}).get(topic, ())) for topic in unknown]
        await trio.sleep(_REFRESH_SECONDS)


def _has_publications(client: Client, topic: Topic) -> bool:
    position = client.position(topic)
    return position is not None and position.sequence > 0


def _hint_text(topic: Topic, similar: Sequence[Topic]) -> str:
    known = f"; the server knows {', '.join(map(str, similar))}" if similar else ""
    return f"{topic}: no publication seen{known}"
