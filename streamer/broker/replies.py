"""What Redis means by an error."""

from __future__ import annotations

import re
from typing import Final

from streamer.broker.connection import RedisReplyError

_PASSING: Final = re.compile(
    r"(?:^|-)(?:NOSCRIPT|OUTOFORDER|LOADING|BUSY|READONLY|MASTERDOWN|NOREPLICAS|MISCONF|OOM"
    r"|CLUSTERDOWN|TRYAGAIN) "
)
"""Before version 7, what happens in a script is told in the middle of another error's text."""

_ELSEWHERE: Final = re.compile(r"(?:^|-)(?:MOVED|ASK|CLUSTERDOWN) ")


def is_passing(error: RedisReplyError) -> bool:
    """Whether an error speaks of the state that Redis is in, and not of what it was asked."""
    return _PASSING.search(str(error)) is not None


def is_elsewhere(error: RedisReplyError) -> bool:
    """Whether a server of a Cluster answers that it is not the one to ask, or not now."""
    return _ELSEWHERE.search(str(error)) is not None
