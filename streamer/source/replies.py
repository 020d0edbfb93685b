"""What Redis means by an error."""

from __future__ import annotations

import re
from typing import Final

from streamer.source.connect import RedisReplyError

_PASSING: Final = re.compile(
    r"(?:^|-)(?:NOSCRIPT|OUTOFORDER|LOADING|BUSY|READONLY|MASTERDOWN|NOREPLICAS|MISCONF|OOM"
    r"|CLUSTERDOWN|TRYAGAIN) "
)
"""Before version 7, what happens in a script is told in the middle of another error's text."""


def is_passing(error: RedisReplyError) -> bool:
    """Whether an error speaks of the state that Redis is in, and not of what it was asked."""
    return _PASSING.search(str(error)) is not None
