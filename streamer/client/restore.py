"""Restore the subscriptions on a new connection, each from the client's position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from streamer.backoff import Backoff
from streamer.client.connection import AnswerT, Connection
from streamer.client.errors import (
    Rejected,
    RequestError,
    SubscriptionRejectedError,
    rejections,
)
from streamer.client.requests import Limits, Options, subscribe_requests, unsubscribe_requests
from streamer.protocol import messages
from streamer.protocol.codec import encode_request
from streamer.protocol.messages import Position
from streamer.protocol.topics import Topic

_MAX_MESSAGE_BYTES: Final = 65536
"""The default of protocol version 1, for a server that does not announce its limits."""
_REQUEST_ID_BYTES: Final = 40
"""The most that a request_id adds to a request."""
_FIRST_RETRY_SECONDS: Final = 1.0


async def restore(
    connection: Connection,
    session_id: str,
    wanted: Mapping[Topic, Options],
    *,
    limits: Limits,
    position: Callable[[Topic], Position | None],
) -> str | None:
    """Restore the session, and subscribe to topics that it lacks, since the client's positions.

    Returns the session_id of the restored session, or None if there was none. It is restored by
    message rather than by the `session_id` of the URL, since only the client knows its positions:
    the server knows those of the last ping. A request that the server cannot carry out now (as over
    the rate limit) is repeated until it can.
    Raises SubscriptionRejectedError, RequestError, DecodeError and ConnectionLostError.
    """
    positions = {str(topic): found for topic in wanted if (found := position(topic)) is not None}
    request = messages.Reconnect(session_id, positions)
    restored: set[Topic] = set()
    restored_id = None
    limit = limits.get("max_message_bytes", _MAX_MESSAGE_BYTES)
    if len(encode_request(request)) <= limit - _REQUEST_ID_BYTES:
        try:
            answer = await _ask_until_answered(connection, request, messages.Reconnected)
        except RequestError:
            pass  # this server does not know the session, or no longer
        else:
            restored_id = answer.session_id
            restored = {
                Topic(subscription_type, target)
                for subscription_type, targets in answer.restored_subscriptions.items()
                for target in targets
            }
    for unsubscribe in unsubscribe_requests(restored - wanted.keys(), limits):
        await _ask_until_answered(connection, unsubscribe, messages.Unsubscribed)
    missing = {topic: options for topic, options in wanted.items() if topic not in restored}
    rejected: list[Rejected] = []
    for subscribe in subscribe_requests(missing, limits, position):
        subscribed = await _ask_until_answered(connection, subscribe, messages.Subscribed)
        rejected += rejections(subscribed)
    if rejected:
        raise SubscriptionRejectedError(rejected)
    return restored_id


async def restore_options(connection: Connection, max_bandwidth: float | None) -> None:
    """Ask for the options of the connection itself; None: the client has never asked for any.

    Before the subscriptions: what was missed comes within the bandwidth, too.
    Raises RequestError, DecodeError and ConnectionLostError.
    """
    if max_bandwidth is not None:
        request = messages.SetOptions(max_bandwidth)
        await _ask_until_answered(connection, request, messages.ConnectionOptions)


async def _ask_until_answered(
    connection: Connection, request: messages.ClientMessage, answer_type: type[AnswerT]
) -> AnswerT:
    """Send a request, and repeat it with backoff while the server's error may pass."""
    backoff = Backoff(first_seconds=_FIRST_RETRY_SECONDS)
    while True:
        try:
            return await connection.ask(request, answer_type)
        except RequestError as error:
            if not error.is_passing:
                raise
        await trio.sleep(backoff.next_delay())
