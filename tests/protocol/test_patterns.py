"""Patterns of topics: what they match, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol.patterns import TopicPattern
from streamer.protocol.topics import SubscriptionType, Topic
from tests.helpers.targets import targets

TYPES = st.sampled_from(SubscriptionType)


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("stock:005930", "stock:005930", True),
        ("stock:005930", "stock:005931", False),
        ("stock:005930", "market:005930", False),
        ("stock:*", "stock:005930", True),
        ("stock:*", "sector:005930", False),
        ("watchlist:42/*", "watchlist:42/tech", True),
        ("watchlist:42/*", "watchlist:42", False),
        ("watchlist:42/*", "watchlist:421", False),
        ("stock:BTC/USDT:*", "stock:BTC/USDT:USDT", True),
        ("stock:NIFTY *", "stock:NIFTY 50", True),
        ("sector:삼성*", "sector:삼성전자", True),
    ],
)
def test_a_pattern_is_a_whole_target_or_its_beginning(
    pattern: str, topic: str, matches: bool
) -> None:
    """A last * stands for any rest; anything else for itself."""
    assert TopicPattern.parse(pattern).matches(Topic.parse(topic)) is matches


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stock", "is not TYPE:TARGET"),
        ("*", "is not TYPE:TARGET"),
        ("*:005930", "is not TYPE:TARGET"),
        ("bond:*", "is not TYPE:TARGET"),
        ("stock:", "can match no topic"),
        ("stock:*a", "has a * that is not at its end"),
        ("stock:**", "has a * that is not at its end"),
        ("stock:a*b*", "has a * that is not at its end"),
        ("stock:a[b", "can match no topic"),
        ("stock: a", "can match no topic"),
        ("stock: *", "can match no topic"),
        ("stock:" + "a" * 65, "can match no topic"),
        ("stock:" + "a" * 64 + "*", "can match no topic"),
        (42, "is a string"),
        (None, "is a string"),
        ({"stock": "*"}, "is a string"),
    ],
)
def test_what_is_no_pattern_is_refused(text: object, problem: str) -> None:
    """The error says why, so that a setting can be corrected."""
    with pytest.raises(ValueError, match=problem.replace("*", r"\*")):
        TopicPattern.parse(text)


@given(TYPES, targets, TYPES, targets)
def test_a_topic_is_a_pattern_of_itself_alone(
    subscription_type: SubscriptionType, target: str, other_type: SubscriptionType, other: str
) -> None:
    """Every topic can be granted by its name, and nothing else comes with it."""
    topic = Topic(subscription_type, target)
    pattern = TopicPattern.parse(str(topic))
    assert str(pattern) == str(topic)
    assert pattern.matches(topic)
    another = Topic(other_type, other)
    assert pattern.matches(another) is (another == topic)


@given(TYPES, targets, targets, st.integers(0, 64))
def test_a_beginning_matches_what_begins_with_it(
    subscription_type: SubscriptionType, target: str, other: str, length: int
) -> None:
    """No more and no less, whatever the characters."""
    beginning = target[:length]
    try:
        pattern = TopicPattern.parse(f"{subscription_type}:{beginning}*")
    except ValueError:
        # Nothing can follow a target of the greatest length.
        return
    assert pattern.matches(Topic(subscription_type, target))
    assert pattern.matches(Topic(subscription_type, other)) is other.startswith(beginning)
    assert TopicPattern.parse(str(pattern)) == pattern


@given(st.text())
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    """No text causes another error."""
    try:
        pattern = TopicPattern.parse(text)
    except ValueError:
        return
    assert str(pattern) == text
