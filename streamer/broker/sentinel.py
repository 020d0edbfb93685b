"""Where Sentinel says that the master is.

Asked anew for every connection, as the guidelines for Sentinel clients want it
(https://redis.io/docs/latest/develop/reference/sentinel-clients/): a failover is then no more than
a lost connection. What asks blocks, and runs in the worker thread that connects.
"""

from __future__ import annotations

import random
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlencode

import attrs
import redis
import redis.connection
import redis.exceptions

from streamer.broker.urls import HostsURL

DEFAULT_PORT: Final = 26379

_SENTINEL_PREFIX: Final = "sentinel_"
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_OF_THE_MASTER: Final = frozenset(
    {"host", "port", "username", "password", "db", "connection_class", "socket_read_size"}
)
"""Options of the connection to the master that are none of a sentinel's."""


@attrs.frozen
class SentinelURL:
    """`redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,…]/MASTERNAME[/DB][?OPTIONS]`, taken apart."""

    hosts: tuple[tuple[str, int], ...]
    master_name: str
    master_url: str = attrs.field(repr=False)
    """Of the master, at an address that has still to be found."""
    encrypted: bool
    credentials: dict[str, str] = attrs.field(repr=False)
    """For the sentinels: the URL's own are the master's."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take `url` apart. Raises ValueError."""
        parts = HostsURL.parse(url, default_port=DEFAULT_PORT)
        master_name, _, database = parts.path.partition("/")
        if not master_name or not (database.isdecimal() or not database):
            raise ValueError("expected /MASTERNAME or /MASTERNAME/DB")
        options = parse_qsl(parts.query)
        own = {name: value for name, value in options if name in _SENTINEL_OPTIONS}
        rest = urlencode([(name, value) for name, value in options if name not in own])
        master_url = attrs.evolve(parts, query=rest).of_one("master", 0, database)
        return cls(
            parts.hosts,
            master_name,
            master_url,
            parts.scheme == "rediss",
            {name.removeprefix(_SENTINEL_PREFIX): value for name, value in own.items()},
        )


class MasterFinder:
    """Asks the sentinels once.

    `options` are those of the connection to the master, and hold for the sentinels too: timeouts
    and TLS. Raises TypeError for those that redis-py does not know.
    """

    def __init__(self, url: SentinelURL, options: dict[str, Any]) -> None:
        shared = {name: value for name, value in options.items() if name not in _OF_THE_MASTER}
        shared |= {**url.credentials, "ssl": url.encrypted}
        self._master_name = url.master_name
        # In an order of its own each time: one that is cut off from the others may be wrong for as
        # long as it is, and whoever always begins with it would not find out.
        self._sentinels = {
            f"{host}:{port}": redis.Redis(host, port, **shared)
            for host, port in random.sample(url.hosts, len(url.hosts))
        }

    def find(self) -> tuple[str, int]:
        """The master's host and port.

        Raises redis.exceptions.ConnectionError where no sentinel knows of a master that is up.
        """
        # Not by redis-py's Sentinel.discover_master: for a reason it gives the repr of its clients,
        # and one sentinel that answers with an error keeps it from asking the next.
        problems = []
        for address, sentinel in self._sentinels.items():
            with sentinel:
                try:
                    state: Any = sentinel.sentinel_master(self._master_name)
                except redis.exceptions.RedisError as error:
                    problems.append(f"{address}: {error}")
                    continue
            if state["is_master"] and not state["is_sdown"] and not state["is_odown"]:
                return state["ip"], state["port"]
            problems.append(f"{address}: it is down")
        raise redis.exceptions.ConnectionError(
            f"no sentinel knows of a master {self._master_name!r} that is up: {'; '.join(problems)}"
        )

    @staticmethod
    def check_role(connection: redis.connection.AbstractConnection) -> None:
        """Raise redis.exceptions.ConnectionError unless a master is at the other end.

        For a moment after a failover, the sentinels may still name the one that was demoted.
        """
        connection.send_command("ROLE")  # type: ignore[no-untyped-call]
        role = connection.read_response()[0]
        if role != b"master":
            raise redis.exceptions.ConnectionError(
                f"a {role.decode()} where Sentinel says that the master is"
            )
