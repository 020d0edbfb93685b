"""The commands that publish: their settings and options, and a publisher made of them."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import click

from streamer.broker.connect import RedisConnectionError, open_connection
from streamer.cli.errors import CommandError, ExitCode
from streamer.config import Settings
from streamer.publisher import Publisher, open_publisher
from streamer.publisher.core import PublisherOptions
from streamer.urls import redact

PRODUCER_SETTINGS: Final = ("redis", "max_publication_bytes", "history_length", "history_seconds")

_TIMEOUT_SECONDS: Final = 5.0


def _check_finite(_context: click.Context, _parameter: click.Parameter, seconds: float) -> float:
    """Refuse `inf` and `nan`, which a range of click lets through."""
    if not math.isfinite(seconds):
        raise click.BadParameter(f"{seconds} is not a time.")
    return seconds


with_hold: Final = click.option(
    "--hold-seconds",
    type=click.FloatRange(min=0, min_open=True),
    callback=_check_finite,
    default=PublisherOptions().hold_seconds,
    show_default=True,
    metavar="SECONDS",
    help="How long to hold publications while Redis is away; after that they are lost.",
)
"""Add the option `hold_seconds` to a command."""


@asynccontextmanager
async def open_producer(
    settings: Settings,
    *,
    client_name: str,
    hold_seconds: float = PublisherOptions().hold_seconds,
    positioned: bool = True,
) -> AsyncIterator[Publisher]:
    """Open a publisher with these settings, once Redis has been reached.

    Raises CommandError, as `check_redis` does, and what `open_publisher` raises.
    """
    await check_redis(settings.redis, client_name=client_name)
    async with open_publisher(
        settings.redis,
        positioned=positioned,
        history_length=settings.history_length,
        history_seconds=settings.history_seconds,
        hold_seconds=hold_seconds,
        max_publication_bytes=settings.max_publication_bytes,
    ) as publisher:
        yield publisher


async def check_redis(url: str, *, client_name: str) -> None:
    """Connect to the Redis at `url` once.

    A publisher waits for a Redis that is away, but one that is away at the start of a command is
    more likely a wrong URL. Raises CommandError with REDIS_REQUIRED if it cannot be reached, and
    with USAGE for a URL that is not one of Redis.
    """
    try:
        async with open_connection(url, timeout_seconds=_TIMEOUT_SECONDS, client_name=client_name):
            pass
    except RedisConnectionError as error:
        problem = f"cannot reach Redis at {redact(url)}: {error}"
        raise CommandError(problem, ExitCode.REDIS_REQUIRED) from None
    except ValueError as error:
        raise CommandError(f"redis: {error}", ExitCode.USAGE) from None
