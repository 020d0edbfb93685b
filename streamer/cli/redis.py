"""Check that Redis can be reached before a command publishes."""

from typing import Final

from streamer.broker.connect import RedisConnectionError, open_connection
from streamer.cli.errors import CommandError, ExitCode
from streamer.urls import redact

_TIMEOUT_SECONDS: Final = 5.0


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
