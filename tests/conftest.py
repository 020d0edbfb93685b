"""Fixtures for all tests: real Redis servers, never a stand-in, and loggers of their own."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import redis as redis_py
import structlog

from tests.helpers.redis_server import RedisServer

# Shells start background commands with SIGINT ignored, and a process hands that down to its
# children. Tests send SIGINT to processes that they start, so these must get the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline per example measures the machine, not the code.
hypothesis.settings.register_profile("streamer", deadline=None)
hypothesis.settings.load_profile("streamer")


@pytest.fixture(scope="session", autouse=True)
def uncached_loggers() -> Iterator[None]:
    """Let no logger keep the configuration of the test that used it first.

    The command line has loggers cached; what it configures in a test would hold for all later ones.
    """
    configure = structlog.configure

    def configure_uncached(**options: Any) -> None:
        configure(**options | {"cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", configure_uncached)
        yield


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server that all tests share; a test that breaks servers takes `own_redis_server`."""
    with RedisServer() as server:
        yield server


@pytest.fixture(name="redis")
def redis_client(redis_server: RedisServer) -> Iterator[redis_py.Redis]:
    """A blocking client of the shared server, which is empty when the test begins."""
    with redis_server.connect() as client:
        client.flushall()
        yield client


@pytest.fixture
def redis_url(redis_server: RedisServer, redis: redis_py.Redis) -> str:
    """The URL of the shared server, which is empty when the test begins."""
    return redis_server.url


@pytest.fixture
def own_redis_server() -> Iterator[Callable[..., RedisServer]]:
    """A factory of servers for one test to kill, pause and restart; takes options of redis.conf.

    What it returns is running, and is cleaned up after the test.
    """
    with contextlib.ExitStack() as stack:

        def start(**options: str | int) -> RedisServer:
            return stack.enter_context(RedisServer(**options))

        yield start
