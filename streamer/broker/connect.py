"""Connections for requests to whatever kind of Redis a URL names."""

from contextlib import AbstractAsyncContextManager

from streamer.broker.cluster import check_cluster_url, open_cluster
from streamer.broker.connection import (
    INCOMPLETE,
    Command,
    RedisConnectionError,
    RedisReplyError,
    RedisTimeoutError,
    RequestConnection,
    check_server_url,
    open_server,
    unexpected_reply,
)
from streamer.broker.urls import CLUSTER_SCHEMES, has_scheme

__all__ = [
    "INCOMPLETE",
    "Command",
    "RedisConnectionError",
    "RedisReplyError",
    "RedisTimeoutError",
    "RequestConnection",
    "check_url",
    "open_connection",
    "unexpected_reply",
]


def check_url(url: str) -> None:
    """Raise `ValueError`, with the reason, if `open_connection` does not understand `url`."""
    (check_cluster_url if has_scheme(url, CLUSTER_SCHEMES) else check_server_url)(url)


def open_connection(
    url: str, *, timeout_seconds: float, client_name: str
) -> AbstractAsyncContextManager[RequestConnection]:
    """Connect to the Redis at `url`, for requests, and close the connection at the end.

    See `open_server` and `open_cluster`, one of which it calls.
    """
    open_ = open_cluster if has_scheme(url, CLUSTER_SCHEMES) else open_server
    return open_(url, timeout_seconds=timeout_seconds, client_name=client_name)
