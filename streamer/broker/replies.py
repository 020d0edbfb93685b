"""The meaning of error replies."""

from __future__ import annotations

import re
from typing import Final

from streamer.broker.connection import RedisReplyError

_PASSING: Final = re.compile(
    r"(?:^|-)(?:NOSCRIPT|OUTOFORDER|LOADING|BUSY|READONLY|MASTERDOWN|NOREPLICAS|MISCONF|OOM"
    r"|CLUSTERDOWN|TRYAGAIN) "
)
"""Before version 7, Redis puts the error of a command in a script inside another error's text."""

_READ_ONLY: Final = re.compile(r"(?:^|-)READONLY ")

_ELSEWHERE: Final = re.compile(r"(?:^|-)(?:MOVED|ASK|CLUSTERDOWN) ")


def is_passing(error: RedisReplyError) -> bool:
    """Whether an error is about the present state of Redis, so that a retry may succeed."""
    return _PASSING.search(str(error)) is not None


def is_read_only(error: RedisReplyError) -> bool:
    """Whether a replica refuses to write, which may have been the master until now."""
    return _READ_ONLY.search(str(error)) is not None


def is_elsewhere(error: RedisReplyError) -> bool:
    """Whether a server of a Cluster says that it does not serve the key's slot, or not now."""
    return _ELSEWHERE.search(str(error)) is not None


def is_forbidden(error: RedisReplyError) -> bool:
    """Whether the permissions of the Redis user do not allow a command."""
    return str(error).startswith("NOPERM ")
