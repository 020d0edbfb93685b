"""A real Redis, examined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from streamer.checks.finding import Finding, Level, worst
from streamer.checks.redis import check_redis, judge_clock
from streamer.config import Settings
from tests.broker.test_access import PASSWORD, documented_users
from tests.helpers.operator import key_file
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_topology import ClusterService


def messages(findings: list[Finding], level: Level) -> str:
    """Return the messages of one level."""
    return "\n".join(finding.message for finding in findings if finding.level is level)


async def test_a_redis_that_is_as_needed_has_no_findings(redis_url: str) -> None:
    """It answers, with its version, the clock agrees, and the user may do everything."""
    findings = await check_redis(Settings(redis=redis_url))
    assert worst(findings) is Level.OK
    assert {finding.subject for finding in findings} == {"redis", "clock", "redis permissions"}
    assert "version" in findings[0].message


@pytest.mark.parametrize("with_api", [False, True])
async def test_the_documented_user_suffices(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, *, with_api: bool
) -> None:
    """With the rules of the how-to nothing is refused, and nothing remains in Redis."""
    redis_server = own_redis_server()
    with redis_server.connect() as redis:
        for rule in documented_users():
            redis.execute_command(*rule)
        keys = key_file(tmp_path) if with_api else None
        url = f"redis://streamer:{quote(PASSWORD)}@127.0.0.1:{redis_server.port}/0"
        assert worst(await check_redis(Settings(redis=url, api_key_file=keys))) is Level.OK
        assert redis.acl_log() == []
        assert redis.keys() == []


@pytest.mark.parametrize(
    "command",
    [
        "subscribe", "unsubscribe", "publish", "evalsha", "script|load", "hget", "hmget", "hset",
        "del", "xrange", "xrevrange", "xtrim", "time", "get", "set", "zadd",
        "zremrangebyscore", "zrevrangebyscore", "eval", "xadd", "xdel", "expire", "pexpire",
    ],
)  # fmt: skip
async def test_each_missing_command_is_named(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path, command: str
) -> None:
    """Whichever permission of the how-to is missing is in a message."""
    redis_server = own_redis_server()
    with redis_server.connect() as redis:
        for rule in documented_users():
            redis.execute_command(*rule)
        # Redis 6.2 cannot take back a subcommand alone.
        redis.execute_command("ACL", "SETUSER", "streamer", f"-{command.partition('|')[0]}")
    url = f"redis://streamer:{quote(PASSWORD)}@127.0.0.1:{redis_server.port}/0"
    findings = await check_redis(Settings(redis=url, api_key_file=key_file(tmp_path)))
    if command == "time":
        assert "Redis does not give its time" in messages(findings, Level.WARNING)
    assert f"+{command}" in messages(findings, Level.FAULT) + messages(findings, Level.WARNING)


async def test_channels_of_topics_may_be_withheld_those_of_the_server_not(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """A topic that the user may not read is a warning; without the probe no server is ready."""
    redis_server = own_redis_server(
        user="reader on nopass ~* resetchannels &stock:* &streamer:control:* +@all"
    )
    findings = await check_redis(
        Settings(redis=f"redis://reader:any@127.0.0.1:{redis_server.port}")
    )
    assert "&market:" in messages(findings, Level.WARNING)
    assert "&stock:" not in messages(findings, Level.WARNING)
    faults = messages(findings, Level.FAULT)
    assert "+subscribe on &streamer:probe:" in faults
    assert "+publish on &streamer:probe:" in faults
    assert "control" not in faults


async def test_a_redis_that_is_away_or_refuses_is_one_fault(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The message has the reason, and no password."""
    (away,) = await check_redis(Settings(redis=f"unix://{tmp_path}/absent.sock"))
    assert away.level is Level.FAULT
    (refused,) = await check_redis(
        Settings(redis=f"redis://nobody:hunter2@127.0.0.1:{redis_server.port}")
    )
    assert refused.level is Level.FAULT
    assert "WRONGPASS" in refused.message or "invalid username" in refused.message
    assert "hunter2" not in refused.message


async def test_each_master_of_a_cluster_is_examined() -> None:
    """A user that one of them does not know in full is found, with the sharded names."""
    with ClusterService(calm=True) as cluster:
        for master in cluster.masters:
            with master.connect() as redis:
                for rule in documented_users("acl-cluster"):
                    redis.execute_command(*rule)
        url = cluster.url.replace("//", f"//streamer:{quote(PASSWORD)}@")
        assert worst(await check_redis(Settings(redis=url))) is Level.OK
        with cluster.masters[-1].connect() as redis:
            redis.execute_command("ACL", "SETUSER", "streamer", "-ssubscribe")
        findings = await check_redis(Settings(redis=url))
    assert "+ssubscribe on &{stock:" in messages(findings, Level.WARNING)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(98.0, "2.0 s behind"), (99.5, ""), (105.5, ""), (107.5, "2.5 s ahead of")],
)
def test_a_clock_that_differs_is_a_warning(theirs: float, expected: str) -> None:
    """Redis may have looked at its clock at any time between the question and the answer."""
    finding = judge_clock(theirs, sent=100.0, received=105.0)
    assert (finding.level is Level.WARNING) == bool(expected)
    assert expected in finding.message
