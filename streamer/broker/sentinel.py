"""Find the master that Sentinel names.

The sentinels are asked again for every connection, as the guidelines for Sentinel clients say
(https://redis.io/docs/latest/develop/reference/sentinel-clients/), so a failover is handled like
any lost connection. Asking blocks; it runs in the worker thread that connects.
"""

from __future__ import annotations

import random
import time
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
_MASTER_OPTIONS: Final = frozenset(
    {"host", "port", "username", "password", "db", "connection_class", "socket_read_size"}
)
"""Options of the connection to the master that do not hold for sentinels."""


@attrs.frozen
class SentinelURL:
    """`redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,…]/MASTERNAME[/DB][?OPTIONS]`, taken apart."""

    hosts: tuple[tuple[str, int], ...]
    master_name: str
    master_url: str = attrs.field(repr=False)
    """URL of the master, whose host and port are still to be found."""
    encrypted: bool
    credentials: dict[str, str] = attrs.field(repr=False)
    """Credentials for the sentinels; those of the URL are the master's."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take `url` apart. Raises ValueError."""
        parts = HostsURL.parse(url, default_port=DEFAULT_PORT)
        master_name, _, database = parts.path.partition("/")
        if not master_name or not (database.isdecimal() or not database):
            raise ValueError("expected /MASTERNAME or /MASTERNAME/DB")
        options = parse_qsl(parts.query, keep_blank_values=True)
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
    and TLS.
    """

    def __init__(self, url: SentinelURL, options: dict[str, Any]) -> None:
        self._options = {name: v for name, v in options.items() if name not in _MASTER_OPTIONS}
        self._options |= {**url.credentials, "ssl": url.encrypted}
        self._master_name = url.master_name
        # In random order: a sentinel that is cut off from the others may give a wrong answer, and a
        # client that always asked it first would not notice.
        self._hosts = random.sample(url.hosts, len(url.hosts))

    def find(self, deadline: float) -> tuple[str, int]:
        """Return the master's host and port.

        `deadline` is a time of `time.monotonic`. Each sentinel, and the connection to the master,
        gets an equal share of the time left: a silent sentinel does not take the time of the
        others. Raises redis.exceptions.ConnectionError if no sentinel knows a master that is up.
        """
        # Not with redis-py's Sentinel.discover_master: its error only has the repr of its clients,
        # and after one sentinel that answers with an error it does not ask the next.
        problems = []
        for asked, (host, port) in enumerate(self._hosts):
            left_seconds = max(0.001, deadline - time.monotonic())
            share_seconds = left_seconds / (len(self._hosts) - asked + 1)
            try:
                state = self._ask(host, port, share_seconds)
                if state["is_master"] and not state["is_sdown"] and not state["is_odown"]:
                    return state["ip"], int(state["port"])
                problems.append(f"{host}:{port}: it is down")
            except redis.exceptions.RedisError as error:
                problems.append(f"{host}:{port}: {error}")
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                # redis-py does not check the shape of a reply.
                problems.append(f"{host}:{port}: unexpected reply: {error!r}")
        raise redis.exceptions.ConnectionError(
            f"no sentinel knows of a master {self._master_name!r} that is up: {'; '.join(problems)}"
        )

    def _ask(self, host: str, port: int, timeout_seconds: float) -> Any:
        options = dict(self._options)
        for name in ("socket_timeout", "socket_connect_timeout"):
            options[name] = min(options[name], timeout_seconds)
        with redis.Redis(host, port, **options) as sentinel:
            return sentinel.sentinel_master(self._master_name)

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
