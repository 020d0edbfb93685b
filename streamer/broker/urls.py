"""The parts of a URL that names several hosts: redis+sentinel:// and its like.

redis-py has no URL for Sentinel, and for a Cluster one with a single node. The form of these is
`SCHEME://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]]…/PATH?OPTIONS`, as in the package
redis-sentinel-url.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self
from urllib.parse import urlsplit

import attrs

SINGLE_SCHEMES: Final = ("redis", "rediss", "unix")
SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
CLUSTER_SCHEMES: Final = ("redis+cluster", "rediss+cluster")


def has_scheme(url: str, schemes: Iterable[str]) -> bool:
    """Whether `url` has one of these schemes."""
    return url.partition("://")[0] in schemes


@attrs.frozen
class HostsURL:
    """A URL of several hosts, taken apart."""

    scheme: str
    """That of a URL to one of the hosts: redis or rediss."""
    credentials: str
    """As they stand in the URL, the @ included, or empty."""
    hosts: tuple[tuple[str, int], ...]
    path: str
    """Without its first slash."""
    query: str

    @classmethod
    def parse(cls, url: str, *, default_port: int) -> Self:
        """Take `url` apart. Raises ValueError where a host is missing or a port is no number."""
        parts = urlsplit(url)
        # The last @: a password may hold one. A host may not.
        credentials, at, hosts = parts.netloc.rpartition("@")
        located = []
        for host in hosts.split(","):
            address = urlsplit(f"//{host}")
            if not address.hostname:
                raise ValueError("a host is missing")
            located.append((address.hostname, address.port or default_port))
        return cls(
            parts.scheme.partition("+")[0],
            credentials + at,
            tuple(located),
            parts.path[1:],
            parts.query,
        )

    def of_one(self, host: str, port: int, path: str = "") -> str:
        """The URL of one server, with the same credentials and options."""
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{self.credentials}{host}:{port}/{path}?{self.query}"
