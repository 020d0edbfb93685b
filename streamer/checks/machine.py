"""The limits of this machine."""

from __future__ import annotations

import resource
from typing import Final

from streamer.checks.finding import Finding, fault, ok, warning

_OTHER_DESCRIPTORS: Final = 64
"""Descriptors that a server needs beside those of its clients: Redis, listeners, files, logs."""

_FEW_DESCRIPTORS: Final = 4096
"""Fewer are the default of a login, rather than a choice for a server."""

_SUBJECT: Final = "ulimit"


def hard_descriptor_limit() -> int:
    """Return how many files this process may raise its limit to; the server does so itself."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def check_descriptors(limit: int, max_connections: int) -> Finding:
    """Compare the limit of open files with the most clients of a process; 0 is no limit.

    `limit` is `hard_descriptor_limit()`, negative if there is none.
    """
    if limit < 0:
        return ok(_SUBJECT, "no limit of open files")
    needed = max_connections + _OTHER_DESCRIPTORS
    if max_connections and limit < needed:
        return fault(
            _SUBJECT,
            f"{limit} open files are allowed, and max_connections needs about {needed} "
            "(ulimit -Hn, LimitNOFILE in a systemd unit)",
        )
    if not max_connections and limit < _FEW_DESCRIPTORS:
        return warning(
            _SUBJECT, f"{limit} open files are allowed, and each client is one (ulimit -Hn)"
        )
    return ok(_SUBJECT, f"{limit} open files are allowed")
