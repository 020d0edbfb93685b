"""The producers of docs/examples that other frameworks and languages run reach a client."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson
import trio

from tests.helpers.clients import connected
from tests.helpers.redis_server import RedisServer, random_ports
from tests.helpers.server import running_server
from tests.helpers.timing import DEADLINE_SECONDS, wait_until
from tests.test_examples import ENVIRONMENT, EXAMPLES, PROJECT
from tests.web.driver import node

PUBLISH_LUA = PROJECT / "streamer" / "publisher" / "publish.lua"


@contextmanager
def web_application(*command: str | Path, redis_url: str) -> Iterator[str]:
    """Run a program that serves HTTP, in docs/examples, on a port that it is given; its URL."""
    port = random_ports()[0]
    arguments = [str(word).replace("PORT", str(port)) for word in command]
    environment = ENVIRONMENT | {"REDIS_URL": redis_url}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=EXAMPLES,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or _serves(url))
        assert process.poll() is None
        yield url
    finally:
        process.kill()
        process.wait()


def _serves(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def post(url: str, body: bytes) -> dict[str, object]:
    """POST a body as JSON, and return the answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as response:
        answer: dict[str, object] = orjson.loads(response.read())
        return answer


async def test_fastapi_publishes(redis_url: str) -> None:
    """fastapi_producer.py publishes what its clients post, with every digit."""
    with web_application(
        "-m", "uvicorn", "--port", "PORT", "fastapi_producer:app", redis_url=redis_url
    ) as url:
        async with running_server(redis=redis_url) as server, connected(server) as client:
            await client.subscribe("stock:005930")
            for sequence in (1, 2):
                answer = await trio.to_thread.run_sync(
                    partial(post, f"{url}/prices/005930", b'{"price":"72500.10","volume":3}')
                )
                assert answer == {"sequence": sequence}
                text = await client.connection.get_message()
                assert '"price":72500.10,' in str(text)


async def test_django_publishes(redis_url: str, redis_server: RedisServer) -> None:
    """django_producer.py sends a user an alert."""
    with (
        web_application(
            "django_producer.py", "runserver", "127.0.0.1:PORT", "--noreload", redis_url=redis_url
        ) as url,
        redis_server.connect() as redis,
        redis.pubsub() as subscription,
    ):
        subscription.subscribe("alerts:42")
        messages = subscription.listen()
        next(messages)
        answer = await trio.to_thread.run_sync(post, f"{url}/alerts/42?id=7", b"up")
        assert answer == {"sequence": 1}
        alert = orjson.loads(next(messages)["data"])
        assert (alert["alert_id"], alert["message"], alert["sequence"]) == (7, "up", 1)


async def test_a_program_in_another_language_publishes(
    redis_url: str, redis_server: RedisServer
) -> None:
    """node_producer.mjs calls the script as docs/how-to/publish.md says."""
    async with running_server(redis=redis_url) as server, connected(server) as client:
        await client.subscribe("stock:005930")
        for sequence in (1, 2):
            done = await trio.run_process(
                [
                    node(),
                    EXAMPLES / "node_producer.mjs",
                    *("127.0.0.1", str(redis_server.port), PUBLISH_LUA, "005930", "72500"),
                ],
                capture_stdout=True,
                env=os.environ,
            )
            assert done.stdout.decode().startswith("72500 is at ")
            assert done.stdout.decode().split()[-1] == str(sequence)
            message = await client.data()
            assert (message["sequence"], message["price"]) == (sequence, 72_500)
