"""How subscriptions come back on a new connection, each from where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from streamer.client.connection import Connection
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
"""Of protocol version 1, for a server that does not tell its limits."""
_REQUEST_ID_BYTES: Final = 40
"""What the request_id adds to a request, at most."""


async def restore(
    connection: Connection,
    session_id: str,
    wanted: Mapping[Topic, Options],
    *,
    limits: Limits,
    position: Callable[[Topic], Position | None],
) -> str | None:
    """Restore the session; what it does not bring back is subscribed since its position.

    Returns the session_id of the restored session, if it was. By message rather than by the
    `session_id` of the URL, since only the client knows what it holds; the server knows no more
    than what it held at the last ping.
    Raises SubscriptionRejectedError, RequestError and ConnectionLostError.
    """
    positions = {str(topic): place for topic in wanted if (place := position(topic)) is not None}
    request = messages.Reconnect(session_id, positions)
    restored: set[Topic] = set()
    restored_id = None
    limit = limits.get("max_message_bytes", _MAX_MESSAGE_BYTES)
    if len(encode_request(request)) <= limit - _REQUEST_ID_BYTES:
        try:
            answer = await connection.ask(request, messages.Reconnected)
        except RequestError:
            pass  # the session is not known there, or not any more
        else:
            restored_id = answer.session_id
            restored = {
                Topic(subscription_type, target)
                for subscription_type, targets in answer.restored_subscriptions.items()
                for target in targets
            }
    for unsubscribe in unsubscribe_requests(restored - wanted.keys(), limits):
        await connection.ask(unsubscribe, messages.Unsubscribed)
    missing = {topic: options for topic, options in wanted.items() if topic not in restored}
    rejected: list[Rejected] = []
    for subscribe in subscribe_requests(missing, limits, position):
        rejected += rejections(await connection.ask(subscribe, messages.Subscribed))
    if rejected:
        raise SubscriptionRejectedError(rejected)
    return restored_id
