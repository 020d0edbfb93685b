"""Topics and channels: nothing hostile reaches Redis, and every name can be read back."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol.topics import (
    KINDS,
    Kind,
    SubscriptionType,
    Topic,
    is_target,
    parse_channel,
    personal_channel,
)

ALLOWED = string.ascii_letters + string.digits + "._/^=-"

targets = st.text(ALLOWED, min_size=1, max_size=64)
topics = st.builds(Topic, st.sampled_from(SubscriptionType), targets)


@given(st.text(max_size=80))
def test_a_target_is_1_to_64_of_the_allowed_characters(text: str) -> None:
    """Any text is a target exactly when its length and each of its characters are allowed."""
    assert is_target(text) == (1 <= len(text) <= 64 and set(text) <= set(ALLOWED))


@pytest.mark.parametrize(
    "hostile",
    [
        *("*", "h?llo", "[ab]", "a\\b", "a b", "a:b", "a\n", "\na", "a\x00", "\r\nPUBLISH x y"),
        *("", "x" * 65, "삼성전자", "é", "e\u0301", "٣", "\ud800"),
        *(5, 5.0, True, None, [], ["A"], {}, b"A"),
    ],
    ids=ascii,
)
def test_hostile_targets_are_refused(hostile: object) -> None:
    """Globs, separators, control characters, other scripts and other types are no targets."""
    assert not is_target(hostile)
    with pytest.raises(ValueError, match="invalid target"):
        Topic(SubscriptionType.STOCK, hostile)  # type: ignore[arg-type]


@given(topics)
def test_a_topic_is_read_back_from_its_text(topic: Topic) -> None:
    """`parse` is the inverse of `str`."""
    assert Topic.parse(str(topic)) == topic


@pytest.mark.parametrize("text", ["", "stock", ":", ":A", "bond:A", "Stock:A", "stock :A"])
def test_what_names_no_type_is_explained(text: str) -> None:
    """Text without a known type is refused by naming the types there are."""
    with pytest.raises(ValueError, match="stock, market, sector, watchlist"):
        Topic.parse(text)


@pytest.mark.parametrize("text", ["stock:", "stock:A:B", "stock:A B"])
def test_what_names_no_target_is_explained(text: str) -> None:
    """Text with a bad target is refused by saying what a target is."""
    with pytest.raises(ValueError, match="a target is 1 to 64"):
        Topic.parse(text)


def test_each_type_carries_its_kinds_on_channels_of_their_own() -> None:
    """The channel names are those of the wire contract."""
    channels = {
        Topic(subscription_type, "X").channel(kind)
        for subscription_type, kinds in KINDS.items()
        for kind in kinds
    }
    assert channels == {
        "stock:X:price",
        "stock:X:orderbook",
        "market:X:status",
        "sector:X:price",
        "watchlist:X:price",
    }
    assert personal_channel(Kind.ALERT, "u1") == "alerts:u1"
    assert personal_channel(Kind.NOTIFICATION, "u1") == "notifications:u1"


@given(topics)
def test_a_channel_is_read_back(topic: Topic) -> None:
    """`parse_channel` is the inverse of `Topic.channel` for each kind that the topic carries."""
    for kind in topic.kinds:
        assert parse_channel(topic.channel(kind)) == (topic, kind)


@pytest.mark.parametrize(
    "channel",
    ["", "price", "stock:A", "stock:A:status", "market:A:price", "alerts:u1", "stock::price"],
)
def test_a_channel_of_no_topic_is_refused(channel: str) -> None:
    """A channel that no topic has is an error, whoever named it."""
    with pytest.raises(ValueError, match=r"TYPE:TARGET|has no channel|a target is"):
        parse_channel(channel)
