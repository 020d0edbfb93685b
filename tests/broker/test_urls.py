"""URLs of Redis and their options."""

import inspect
from collections.abc import Iterator

import pytest
import redis.connection

from streamer.broker.connect import check_url
from streamer.config import Settings

VALUES = {
    "client_name": "me",
    "db": "3",
    "password": "secret",
    "socket_connect_timeout": "1.5",
    "socket_keepalive": "true",
    "socket_timeout": "2",
    "ssl_ca_certs": "ca.pem",
    "ssl_ca_data": "-----BEGIN CERTIFICATE-----",
    "ssl_ca_path": "/etc/ssl/certs",
    "ssl_cert_reqs": "none",
    "ssl_certfile": "client.pem",
    "ssl_check_hostname": "false",
    "ssl_ciphers": "HIGH",
    "ssl_keyfile": "client.key",
    "ssl_min_version": "772",
    "ssl_password": "secret",
    "username": "me",
}
"""A value for each option that is honoured."""


def redis_py_options() -> Iterator[str]:
    """Every option that redis-py takes from a URL."""
    yield from redis.connection.URL_QUERY_ARGUMENT_PARSERS
    for of in (
        redis.connection.AbstractConnection,
        redis.connection.Connection,
        redis.connection.SSLConnection,
        redis.connection.UnixDomainSocketConnection,
        redis.connection.ConnectionPool,
        redis.connection.BlockingConnectionPool,
    ):
        for parameter in inspect.signature(of).parameters.values():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                yield parameter.name


@pytest.mark.parametrize("option", sorted({*redis_py_options(), "decode_responses", "nonsense"}))
@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "rediss://host",
        "unix:///socket",
        "redis+sentinel://host/main",
        "rediss+sentinel://host/main",
        "redis+cluster://host",
        "rediss+cluster://host",
    ],
)
def test_an_option_is_honoured_or_refused_by_name(url: str, option: str) -> None:
    """No option of redis-py is ignored, or fails with anything but a line that names it."""
    for check in (check_url, lambda url: Settings(redis=url)):
        problem = ""
        try:
            check(f"{url}?{option}={VALUES.get(option, '1')}")
        except ValueError as error:
            problem = str(error)
        if option not in VALUES or (option.startswith("ssl_") and not url.startswith("rediss")):
            assert option in problem
            assert "secret" not in problem
        elif problem:
            assert (url, option) == ("unix:///socket", "socket_keepalive")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("socket_timeout=soon", "socket_timeout must be a number of seconds"),
        ("socket_timeout=0", "socket_timeout must be a number of seconds"),
        ("socket_timeout=inf", "socket_timeout must be a number of seconds"),
        ("socket_timeout=", "socket_timeout must be a number of seconds"),
        ("socket_timeout=1&socket_timeout=2", "socket_timeout is given twice"),
        ("db=first", "db must be"),
        ("db=\u0663", "db must be"),
        ("db=9999999999", "db must be"),
        ("client_name=a%20b", "client_name must be"),
        ("socket_keepalive=perhaps", "socket_keepalive must be true or false"),
        ("ssl_cert_reqs=required", "ssl_cert_reqs needs a URL with rediss"),
        ("sentinel_password=secret", "sentinel_password' is not supported"),
        ("db=1#2", "%23"),
    ],
)
def test_a_value_that_means_nothing_is_refused(query: str, reason: str) -> None:
    """The message names the option and repeats no value."""
    with pytest.raises(ValueError, match=reason) as refused:
        check_url(f"redis://host?{query}")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://host/first",
        "redis://host/-1",
        "redis://host/0/1",
        "redis://host/\u0663",
        "rediss://host//",
        "redis+sentinel://host/main/first",
        "redis+sentinel://host/main/0/1",
        "redis+cluster://host/0",
    ],
)
def test_a_path_that_is_no_database_is_refused(url: str) -> None:
    """By the settings, too: a server must not end with a traceback because of it."""
    for check in (check_url, lambda url: Settings(redis=url)):
        with pytest.raises(ValueError, match="redis"):
            check(url)


@pytest.mark.parametrize(
    "url", ["redis://host/", "redis://host/15", "rediss+sentinel://a,b/main/2"]
)
def test_a_path_may_be_the_number_of_a_database(url: str) -> None:
    """Or be empty."""
    check_url(url)
    Settings(redis=url)
