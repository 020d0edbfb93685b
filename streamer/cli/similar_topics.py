"""Topics that a server knows, in place of one that has no publications: `sector:Semiconductors`."""

import ssl
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import httpx2
import orjson

from streamer.client import Position, SubscriptionType, Topic
from streamer.protocol.endpoint import SNAPSHOT_PATH

_TIMEOUT_SECONDS: Final = 5.0
_MAX_TOPICS: Final = 5
"""Topics for which others are looked for: a request holds some 20 others of each."""

_TYPES: Final = (
    SubscriptionType.STOCK,
    SubscriptionType.MARKET,
    SubscriptionType.SECTOR,
    SubscriptionType.WATCHLIST,
)


async def find_similar(
    url: str,
    topics: Iterable[Topic],
    *,
    token: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> dict[Topic, list[Topic]]:
    """Return the topics that have publications and are written almost like these.

    `url` is that of the server's WebSocket. A client learns of no topic that it may not have. Empty
    if the server does not answer: nothing depends on it.
    """
    wanted = {topic: list(_variants(topic)) for topic in list(topics)[:_MAX_TOPICS]}
    candidates = {str(variant): variant for variants in wanted.values() for variant in variants}
    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    known: set[Topic] = set()
    try:
        async with httpx2.AsyncClient(
            timeout=_TIMEOUT_SECONDS, verify=True if ssl_context is None else ssl_context
        ) as client:
            response = await client.get(
                urlunsplit((scheme, parts.netloc.rpartition("@")[2], SNAPSHOT_PATH, "", "")),
                params={"topics": ",".join(candidates)},
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
            )
        for name, answer in orjson.loads(response.content).items():
            if name in candidates and _is_known(answer):
                known.add(candidates[name])
    except (AttributeError, TypeError, ValueError, httpx2.HTTPError, httpx2.InvalidURL):
        return {}
    return {
        topic: [variant for variant in variants if variant in known]
        for topic, variants in wanted.items()
    }


def _is_known(answer: dict[str, object]) -> bool:
    position = answer.get("position")
    return isinstance(position, dict) and Position(**position).sequence > 0


def _variants(topic: Topic) -> Iterator[Topic]:
    """Yield the topics that somebody may have meant: in another case, or of another type."""
    target = topic.target
    targets = dict.fromkeys(
        (target, target.upper(), target.lower(), target.capitalize(), target.title())
    )
    for subscription_type in (topic.subscription_type, *_TYPES):
        for variant in targets:
            try:
                other = Topic(subscription_type, variant)
            except ValueError:  # another case may have more characters
                continue
            # The request separates topics by commas.
            if other != topic and "," not in variant:
                yield other
