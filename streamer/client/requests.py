"""The requests for a set of subscriptions, within the server's limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import attrs

from streamer.protocol import messages
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import KINDS, Kind, SubscriptionType, Topic

_DEFAULT_MAX_TARGETS: Final = 100
"""The default of protocol version 1, for a server that does not announce its limits."""

Limits = Mapping[str, float]
"""The `limits` that `connected` announces, by name."""


@attrs.frozen
class Options:
    """The options of a subscription."""

    kinds: frozenset[Kind] | None = None
    """Only these of the kinds that the topic carries; None: all."""
    mode: Mode = Mode.LATEST
    max_rate: float | None = None
    """Messages per second."""
    snapshot: bool = True
    delta: bool = False
    """Whether prices and order books come as changes."""
    depth: int | None = None
    """Levels of each side of an order book; None: all."""


def subscribe_requests(
    wanted: Mapping[Topic, Options],
    limits: Limits,
    position: Callable[[Topic], Position | None] = lambda _topic: None,
) -> Iterator[messages.Subscribe]:
    """Yield requests that subscribe to topics, each since its position if it has one.

    Raises ValueError for options that a topic cannot have.
    """
    by_options: defaultdict[Options, list[Topic]] = defaultdict(list)
    for topic, options in wanted.items():
        by_options[options].append(topic)
    for options, topics in by_options.items():
        for subscription_type, targets in _chunks(topics, limits):
            kinds = None
            if options.kinds is not None:
                kinds = [kind for kind in KINDS[subscription_type] if kind in options.kinds]
            positions = {target: position(Topic(subscription_type, target)) for target in targets}
            since = {target: found for target, found in positions.items() if found is not None}
            yield messages.Subscribe(
                subscription_type,
                targets,
                kinds=kinds,
                mode=options.mode,
                max_rate=options.max_rate,
                snapshot=options.snapshot,
                delta=options.delta,
                depth=options.depth,
                since=since or None,
            )


def unsubscribe_requests(topics: Iterable[Topic], limits: Limits) -> Iterator[messages.Unsubscribe]:
    """Yield requests that unsubscribe from these topics."""
    for subscription_type, targets in _chunks(topics, limits):
        yield messages.Unsubscribe(subscription_type, targets)


def _chunks(
    topics: Iterable[Topic], limits: Limits
) -> Iterator[tuple[SubscriptionType, list[str]]]:
    """Divide topics by type, and then into chunks that one request may name."""
    by_type: defaultdict[SubscriptionType, list[str]] = defaultdict(list)
    for topic in topics:
        by_type[topic.subscription_type].append(topic.target)
    size = max(1, int(limits.get("max_targets_per_request", _DEFAULT_MAX_TARGETS)))
    for subscription_type, targets in by_type.items():
        for start in range(0, len(targets), size):
            yield subscription_type, targets[start : start + size]
