"""The account of streamer.js against the Verifier of the Python client: the same rules."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from typing import Any, Final

import pytest

from streamer.client.messages import Gap, PriceUpdate
from streamer.client.verify import Verifier
from streamer.protocol.messages import GapReason, Position, Subscribe, Subscribed, Unsubscribed
from streamer.protocol.topics import Kind, SubscriptionType, Topic
from tests.web.driver import node
from tests.web.nodejs import HERE, MODULE

CONVERSATIONS: Final = 400
STEPS: Final = 60
TOPICS: Final = ("stock:A", "stock:B")

Step = list[Any]


class Stream:
    """A stream as a server sees it, from which most messages are right."""

    def __init__(self) -> None:
        self.epoch = "e0"
        self.sequence = 0


def conversation(chance: random.Random) -> list[Step]:
    """Steps of which most are what a server does, and some violate every rule."""
    streams = {topic: Stream() for topic in TOPICS}
    steps: list[Step] = []
    for _ in range(STEPS):
        topic = chance.choice(TOPICS)
        stream = streams[topic]
        match chance.choices(["begin", "gap", "disconnected", "end", "data"], [8, 4, 3, 1, 60])[0]:
            case "begin":
                since = chance.choice([None, position(chance, stream)])
                announced = chance.choice([None, position(chance, stream)])
                steps.append(["begin", topic, since, announced, chance.random() < 0.3])
                if announced is not None:
                    stream.epoch, stream.sequence = announced["epoch"], announced["sequence"]
            case "gap":
                at = position(chance, stream)
                stream.epoch, stream.sequence = at["epoch"], at["sequence"]
                steps.append(["gap", topic, at | {"reason": chance.choice(list(GapReason))}])
            case "data":
                steps.append(["data", topic, message(chance, stream)])
            case "end":
                steps.append(["end", topic])
            case other:
                steps.append([other])
    return steps


def position(chance: random.Random, stream: Stream) -> dict[str, Any]:
    """A position near the stream's, sometimes in another epoch."""
    epoch = stream.epoch if chance.random() < 0.8 else f"e{chance.randrange(3)}"
    return {"epoch": epoch, "sequence": max(0, stream.sequence + chance.choice([0, 0, 0, -2, 3]))}


def message(chance: random.Random, stream: Stream) -> dict[str, Any]:
    """The next message, a merged one, a snapshot, or a wrong one."""
    made: dict[str, Any] = {"sequence": stream.sequence + chance.choice([1] * 8 + [2, 4, 0, -1])}
    if chance.random() < 0.2:
        made["sequence"] = max(1, made["sequence"])
        made["previous"] = max(0, stream.sequence + chance.choice([0, 0, 0, -1, 1]))
    if chance.random() < 0.1:
        made["snapshot"] = True
    else:
        stream.sequence = max(stream.sequence, made["sequence"])
    made["sequence"] = max(1, made["sequence"])
    return made


def verified(steps: list[Step]) -> dict[str, Any]:
    """The summary of the Python client."""
    verifier = Verifier()
    for name, *values in steps:
        topic = Topic.parse(values[0]) if values else None
        if name == "disconnected":
            verifier.disconnected()
        elif name == "begin":
            _begin(verifier, *values)
        elif name == "end":
            assert topic is not None
            verifier.receive(Unsubscribed(topic.subscription_type, [topic.target], []))
        elif name == "gap":
            assert topic is not None
            at = values[1]
            gap = Gap(
                topic.subscription_type, topic.target, at["reason"], at["epoch"], at["sequence"]
            )
            verifier.receive(gap)
        else:
            assert topic is not None
            update = PriceUpdate(
                timestamp="2024-08-09T00:00:00Z",
                stock_code=topic.target,
                price=1,
                change=0,
                change_percent=0,
                volume=1,
                **values[1],
            )
            verifier.receive(update)
    account = verifier.account()
    positions = [verifier.position(Topic.parse(topic)) for topic in TOPICS]
    return {
        "received": account.received,
        "snapshots": account.snapshots,
        "merged": account.merged,
        "gaps": dict(account.gaps),
        "outstanding": account.outstanding,
        "violations": account.violations,
        "faults": {str(fault): count for fault, count in account.faults.items()},
        "positions": [p and {"epoch": p.epoch, "sequence": p.sequence} for p in positions],
    }


def _begin(
    verifier: Verifier,
    name: str,
    since: dict[str, Any] | None,
    announced: dict[str, Any] | None,
    partial: bool,
) -> None:
    target = name.partition(":")[2]
    verifier.sent(
        Subscribe(
            SubscriptionType.STOCK,
            [target],
            kinds=[Kind.PRICE] if partial else None,
            since=None if since is None else {target: Position(**since)},
        )
    )
    positions = {} if announced is None else {target: Position(**announced)}
    verifier.receive(Subscribed(SubscriptionType.STOCK, [target], [], positions))


@pytest.mark.parametrize("seed", range(2))
def test_both_accounts_are_the_same(seed: int) -> None:
    """Random conversations, right ones and wrong ones, are judged alike."""
    chance = random.Random(seed)
    conversations = [conversation(chance) for _ in range(CONVERSATIONS)]
    done = subprocess.run(
        [node(), HERE / "account.mjs", MODULE],
        input=json.dumps(conversations),
        capture_output=True,
        text=True,
        check=True,
    )
    faults: Counter[str] = Counter()
    for steps, summary in zip(conversations, json.loads(done.stdout), strict=True):
        expected = verified(steps)
        assert {name: summary[name] for name in expected} == expected, steps
        faults.update(summary["faults"])
    assert len(faults) == 8  # every rule was broken by some
