"""URLs of Redis: their schemes, the hosts of one, and the options after the question mark.

redis-py has no URL for Sentinel, and for a Cluster one with a single node. The form of these is
`SCHEME://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]]…/PATH?OPTIONS`, as in the package
redis-sentinel-url.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

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
    """Scheme of a URL to one of the hosts: redis or rediss."""
    credentials: str
    """Credentials as the URL has them, with the @, or empty."""
    hosts: tuple[tuple[str, int], ...]
    path: str
    """Path without its first slash."""
    query: str

    @classmethod
    def parse(cls, url: str, *, default_port: int) -> Self:
        """Take `url` apart. Raises ValueError where a host is missing or a port is no number."""
        parts = urlsplit(url)
        # Split at the last @: a password may contain one, a host may not.
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
        """Return the URL of one server, with the same credentials and options."""
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{self.credentials}{host}:{port}/{path}?{self.query}"


def _is_seconds(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


_DATABASE: Final = re.compile("[0-9]{1,9}")
"""The number of a database; Redis says whether it has so many."""

_TEXT: Final = ("a text", bool)
_SECONDS: Final = ("a number of seconds above 0", _is_seconds)
_SWITCH: Final = ("true or false", lambda text: text.lower() in {"true", "false", "yes", "no"})

_OPTIONS: Final[Mapping[str, tuple[str, Callable[[str], bool]]]] = {
    "client_name": ("a text without spaces", lambda text: bool(text) and " " not in text),
    "db": ("a number of a database", lambda text: _DATABASE.fullmatch(text) is not None),
    "password": _TEXT,
    "socket_connect_timeout": _SECONDS,
    "socket_timeout": _SECONDS,
    "username": _TEXT,
}
_TCP_OPTIONS: Final = {"socket_keepalive": _SWITCH}
_SENTINEL_OPTIONS: Final = {"sentinel_password": _TEXT, "sentinel_username": _TEXT}
_TLS_OPTIONS: Final[Mapping[str, tuple[str, Callable[[str], bool]]]] = {
    "ssl_ca_certs": _TEXT,
    "ssl_ca_data": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_cert_reqs": ("none, optional or required", {"none", "optional", "required"}.__contains__),
    "ssl_certfile": _TEXT,
    "ssl_check_hostname": _SWITCH,
    "ssl_ciphers": _TEXT,
    "ssl_keyfile": _TEXT,
    "ssl_min_version": (
        f"{ssl.TLSVersion.TLSv1_2:d} for TLS 1.2 or {ssl.TLSVersion.TLSv1_3:d} for TLS 1.3",
        {f"{ssl.TLSVersion.TLSv1_2:d}", f"{ssl.TLSVersion.TLSv1_3:d}"}.__contains__,
    ),
    "ssl_password": _TEXT,
}


def check_database(url: str) -> None:
    """Raise ValueError for a path that redis-py would ignore, or read as another number."""
    parts = urlsplit(url)
    number = parts.path[1:]
    if has_scheme(url, SENTINEL_SCHEMES):
        _, _, number = number.partition("/")
    if parts.scheme != "unix" and number and not _DATABASE.fullmatch(number):
        raise ValueError("the path is not the number of a database")


def check_options(url: str) -> None:
    """Raise ValueError, with a line that names the option, for an unsupported option.

    redis-py supports more: options of its connection pool, of decoding and of retries, which have
    no meaning here. The line repeats no value, since it may be a password.
    """
    parts = urlsplit(url)
    if parts.fragment or url.endswith("#"):
        raise ValueError("a # has to be written %23")
    supported = dict(_OPTIONS)
    if parts.scheme != "unix":
        supported |= _TCP_OPTIONS
    if parts.scheme in SENTINEL_SCHEMES:
        supported |= _SENTINEL_OPTIONS
    if parts.scheme.startswith("rediss"):
        supported |= _TLS_OPTIONS
    seen = set()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in supported:
            if name in _TLS_OPTIONS:
                raise ValueError(f"the option {name} needs a URL with rediss, for TLS")
            names = ", ".join(sorted(supported))
            raise ValueError(f"the option {name!r:.50} is not supported; supported are {names}")
        if name in seen:
            raise ValueError(f"the option {name} is given twice")
        seen.add(name)
        words, is_allowed = supported[name]
        if not is_allowed(value):
            raise ValueError(f"the option {name} must be {words}")
