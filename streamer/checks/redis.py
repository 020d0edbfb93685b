"""Redis: whether it answers, its version, its clock, and what the user of the URL may do.

Each command that a server needs is sent in a form that Redis refuses, or that changes nothing,
after it has looked at the user's permissions. So no topic, session or revocation is touched, and
the user needs no permission beyond those of a server.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import attrs
import trio

from streamer.broker.cluster import discover
from streamer.broker.connection import (
    Command,
    Connection,
    RedisConnectionError,
    RedisReplyError,
    open_server,
)
from streamer.broker.keys import (
    CONTROL_CHANNEL,
    REVOCATIONS_KEY,
    control_channel,
    history_key,
    position_key,
    session_key,
    sharded_channel,
)
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme
from streamer.checks.finding import Finding, fault, ok, warning
from streamer.config import Settings
from streamer.protocol.topics import SubscriptionType, Topic
from streamer.urls import redact

_TIMEOUT_SECONDS: Final = 5.0
_CLIENT_NAME: Final = "streamer-check"

_LEAST_VERSION: Final = (6, 2)
_LEAST_CLUSTER_VERSION: Final = (7, 0)

_PROBE_CHANNEL: Final = "streamer:probe:"

_MAX_CLOCK_DIFFERENCE_SECONDS: Final = 1.0
"""Clocks that are kept by NTP differ by some milliseconds."""


@attrs.frozen
class _Probe:
    """A command, and how to describe the lack of permission for it."""

    command: Command
    permission: str
    """Permission as an ACL names it."""
    judge: Callable[[str, str], Finding] = fault


async def check_redis(settings: Settings) -> list[Finding]:
    """Examine the Redis of the settings: each master, if it is a Cluster."""
    url = settings.redis
    is_cluster = has_scheme(url, CLUSTER_SCHEMES)
    try:
        servers = await _masters(url) if is_cluster else (url,)
        findings = []
        for server in servers:
            findings += await _check_server(server, settings, is_cluster=is_cluster)
    except trio.TooSlowError:
        return [fault("redis", f"{redact(url)} does not answer within {_TIMEOUT_SECONDS:g} s")]
    except (RedisConnectionError, RedisReplyError, ValueError) as error:
        return [fault("redis", f"{redact(url)} cannot be used: {error}")]
    return findings


async def _masters(url: str) -> tuple[str, ...]:
    topology = await discover(url, timeout_seconds=_TIMEOUT_SECONDS, client_name=_CLIENT_NAME)
    return topology.masters


async def _check_server(url: str, settings: Settings, *, is_cluster: bool) -> list[Finding]:
    findings = []
    with trio.fail_after(2 * _TIMEOUT_SECONDS):
        async with _connect(url) as connection:
            findings.append(await _check_version(url, connection, is_cluster=is_cluster))
            findings.append(await _check_clock(connection))
            commands = [*_commands(settings), *_publications(is_cluster=is_cluster)]
            refusals = await _refusals(connection, commands)
        # A connection of its own: one that has subscribed can do nothing else.
        async with _connect(url) as connection:
            refusals += await _refusals(connection, _subscriptions(is_cluster=is_cluster))
    return [*findings, *(refusals or [ok("redis permissions", "all that a server needs")])]


def _connect(url: str) -> AbstractAsyncContextManager[Connection]:
    return open_server(url, timeout_seconds=_TIMEOUT_SECONDS, client_name=_CLIENT_NAME)


async def _check_version(url: str, connection: Connection, *, is_cluster: bool) -> Finding:
    # HELLO is allowed to every user, INFO is not.
    least = _LEAST_CLUSTER_VERSION if is_cluster else _LEAST_VERSION
    try:
        reply = await connection.execute("HELLO")
    except RedisReplyError:
        reply = []  # before Redis 6
    text = _version(reply)
    version = tuple(map(int, re.findall(r"\d+", text)[:2]))
    place = redact(url)
    if version < least:
        needed = ".".join(map(str, least))
        return fault("redis", f"{place} is version {text}; {needed} or newer is needed")
    return ok("redis", f"{place} answers, version {text}")


def _version(reply: Any) -> str:
    """Return the version in a reply to HELLO, which alternates names and values."""
    words = reply if isinstance(reply, list) else []
    for name, value in zip(words[::2], words[1::2], strict=False):
        if name == b"version" and isinstance(value, bytes):
            return value.decode(errors="replace")
    return "unknown"


async def _check_clock(connection: Connection) -> Finding:
    sent = time.time()
    try:
        seconds, microseconds = await connection.execute("TIME")
    except RedisReplyError:
        return warning("clock", "Redis does not give its time")
    return judge_clock(int(seconds) + int(microseconds) / 1e6, sent, time.time())


def judge_clock(theirs: float, sent: float, received: float) -> Finding:
    """Judge the time of Redis, of a question sent and answered at these times, all since 1970."""
    if theirs > received + _MAX_CLOCK_DIFFERENCE_SECONDS:
        difference = f"{theirs - received:.1f} s ahead of"
    elif theirs < sent - _MAX_CLOCK_DIFFERENCE_SECONDS:
        difference = f"{sent - theirs:.1f} s behind"
    else:
        return ok("clock", f"that of Redis agrees within {_MAX_CLOCK_DIFFERENCE_SECONDS:g} s")
    return warning("clock", f"Redis is {difference} this machine: synchronize both (NTP)")


def _commands(settings: Settings) -> Iterator[_Probe]:
    """Yield every command of a server, in a form that changes nothing."""
    topic = f"stock:{_unused_name()}"
    position, history = position_key(topic), history_key(topic)
    session = session_key(_unused_name())
    harmless: list[Command] = [
        ("EVALSHA", "0" * 40, 0),  # a script that nobody has loaded
        ("SCRIPT", "LOAD", "return 1"),
        ("TIME",),
        ("HGET", position, "epoch"),
        ("HMGET", position, "epoch"),
        ("HSET", position, "epoch", "1", "a field without a value"),
        ("DEL", session),  # there is none of that name
        ("XRANGE", history, "-", "+", "COUNT", 1),
        ("XREVRANGE", history, "+", "-", "COUNT", 1),
        ("XTRIM", history, "MAXLEN", "no number"),
        ("GET", session),
        ("SET", session, "", "NO-SUCH-OPTION"),
        ("ZADD", REVOCATIONS_KEY, "no number", ""),
        ("ZREMRANGEBYSCORE", REVOCATIONS_KEY, "no number", "no number"),
        ("ZREVRANGEBYSCORE", REVOCATIONS_KEY, "no number", "no number"),
    ]
    if settings.api_key_file is not None:
        harmless += [
            ("EVAL", "return 1", 0),
            ("XADD", history, "no id", "m", ""),
            ("XDEL", history, "0-1"),  # there is none of that name
            ("EXPIRE", history, "no number"),
            ("PEXPIRE", history, "no number"),
        ]
    for command in harmless:
        name, *rest = (str(word).lower() for word in command)
        key = next((word for word in rest if word.startswith("streamer:")), None)
        permission = f"+{name}|load" if name == "script" else f"+{name}"
        yield _Probe(command, permission if key is None else f"{permission} on ~{key}")


def _publications(*, is_cluster: bool) -> Iterator[_Probe]:
    """Yield publications on channels of the server that nobody reads."""
    publish = "SPUBLISH" if is_cluster else "PUBLISH"
    for channel in (_PROBE_CHANNEL + _unused_name(), control_channel(_unused_name())):
        yield _Probe((publish, channel, ""), f"+{publish.lower()} on &{channel}")


def _subscriptions(*, is_cluster: bool) -> Iterator[_Probe]:
    """Yield subscriptions to a channel of each kind; those of topics may be withheld on purpose."""
    subscribe = "SSUBSCRIBE" if is_cluster else "SUBSCRIBE"
    of_topics = [
        channel
        for subscription_type in SubscriptionType
        for channel in Topic(subscription_type, _unused_name()).channels
    ]
    own = [_PROBE_CHANNEL + _unused_name(), CONTROL_CHANNEL, control_channel(_unused_name())]
    for channel in (*own, *of_topics):
        name = sharded_channel(channel) if is_cluster else channel
        judge = warning if channel in of_topics else fault
        yield _Probe((subscribe, name), f"+{subscribe.lower()} on &{name}", judge)
    unsubscribe = "SUNSUBSCRIBE" if is_cluster else "UNSUBSCRIBE"
    yield _Probe((unsubscribe, CONTROL_CHANNEL), f"+{unsubscribe.lower()}")


async def _refusals(connection: Connection, probes: Iterable[_Probe]) -> list[Finding]:
    findings = []
    for probe in probes:
        try:
            await connection.execute(*probe.command)
        except RedisReplyError as error:
            # Permissions come first: any other error, such as MOVED, is from behind them.
            if str(error).startswith("NOPERM"):
                findings.append(
                    probe.judge("redis permissions", f"the user needs {probe.permission}")
                )
    return findings


def _unused_name() -> str:
    return f"check-{secrets.token_hex(8)}"
