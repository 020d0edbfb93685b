"""Errors that pass are told from those that stay."""

from collections.abc import Callable

import pytest
import trio

from streamer.broker.connect import RedisReplyError
from streamer.broker.history import HistoryQuery, RedisHistory, Unanswered
from streamer.broker.replies import is_passing
from streamer.broker.requests import RedisClient
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic
from tests.helpers.redis_server import RedisServer


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("LOADING Redis is loading the dataset in memory", True),
        ("ERR Error running script (call to f_1): @user_script:9: -READONLY You can't", True),
        ("NOPERM this user has no permissions to run the 'evalsha' command", False),
        ("ERR unknown command 'EVALSHA'", False),
    ],
)
def test_an_error_of_the_moment_is_told_from_one_that_stays(text: str, passing: bool) -> None:
    """The wording of every supported version of Redis is understood."""
    assert is_passing(RedisReplyError(text)) is passing


async def test_a_topic_has_positions_even_while_redis_cannot_tell_them(
    own_redis_server: Callable[..., RedisServer],
) -> None:
    """An error that passes does not make a topic one without positions."""
    redis = own_redis_server(replica_serve_stale_data="no")
    with redis.connect() as client:
        client.replicaof("127.0.0.1", 1)
    commands = RedisClient(redis.url, client_name="test")

    def unreadable(topic: Topic, reason: str) -> None:
        raise AssertionError(f"{topic}: {reason}")

    history = RedisHistory(commands, unreadable, entries_per_read=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commands.run)
        query = HistoryQuery(Topic.parse("stock:005930"), Position("e", 0))
        (record,) = await history.read([query], "")
        assert isinstance(record, Unanswered)
        assert "MASTERDOWN" in record.reason
        nursery.cancel_scope.cancel()
