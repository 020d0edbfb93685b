"""The parent asks a worker for its page, which may answer late, wrongly or not at all.

Covers streamer.workers.worker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from streamer.config import Settings
from streamer.workers.assignment import Assignment
from streamer.workers.worker import Worker

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

Requests = trio.MemoryReceiveChannel[trio.SocketStream]


@asynccontextmanager
async def page(directory: Path) -> AsyncIterator[tuple[Worker, Requests]]:
    """A worker whose page the test answers, and the requests to that, as streams."""
    path = directory / "page.sock"
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    send, receive = trio.open_memory_channel[trio.SocketStream](1)

    async def accept() -> None:
        while True:
            stream = trio.SocketStream((await listener.accept())[0])
            await stream.receive_some()
            await send.send(stream)

    settings = Settings(api_timeout_seconds=8)
    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield Worker(Assignment(1, settings), ["true"], path, trio.Event()), receive
            nursery.cancel_scope.cancel()


async def test_a_request_of_an_operator_may_take_as_long_as_the_setting_allows(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """Two times, since some ask the others and then Redis, after 20 s for keys of tokens."""
    answers: list[tuple[int, bytes] | None] = []
    async with page(tmp_path) as (worker, requests), trio.open_nursery() as nursery:

        async def post() -> None:
            answers.append(await worker.post("/v1/api/topics", b"{}", "key"))

        nursery.start_soon(post)
        async with await requests.receive() as stream:
            mock_clock.jump(20 + 2 * 8)
            await wait_all_tasks_blocked()
            await stream.send_all(OK)
    assert answers == [(200, b"{}")]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 \r\ncontent-length: 0\r\n\r\n",
        b'HTTP/1.1 500 \r\ncontent-length: 16\r\n\r\n{"error": "..."}',
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{\xff}",
        b"{}\r\n\r\n",
    ],
)
async def test_an_answer_that_is_none_counts_as_silence(tmp_path: Path, answer: bytes) -> None:
    """The parent goes on: it asks all workers every five seconds."""
    async with page(tmp_path) as (worker, requests), trio.open_nursery() as nursery:

        async def respond() -> None:
            async with await requests.receive() as stream:
                await stream.send_all(answer)

        nursery.start_soon(respond)
        assert await worker.ask("/v1/ws/stats") is None
