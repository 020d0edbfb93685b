"""The names in Redis: all of a topic is in one slot of a Cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from streamer.broker.keys import (
    history_key,
    plain_channel,
    position_key,
    published_key,
    sharded_channel,
)
from streamer.protocol.topics import SubscriptionType, Topic
from tests.helpers.targets import targets


@pytest.mark.parametrize(
    ("channel", "sharded"),
    [
        ("stock:005930:price", "{stock:005930}:price"),
        ("stock:BTC/USDT:USDT:price", "{stock:BTC/USDT:USDT}:price"),
        ("alerts:u1", "{user:u1}:alerts"),
        ("notifications:a:b", "{user:a:b}:notifications"),
    ],
)
def test_a_channel_has_a_name_in_a_cluster(channel: str, sharded: str) -> None:
    """Other programs publish to it by that name."""
    assert sharded_channel(channel) == sharded


@pytest.mark.parametrize("channel", ["", "news", "stock:A", "alerts:", "stock:{A}:price"])
def test_what_is_no_channel_of_a_topic_has_no_name_in_a_cluster(channel: str) -> None:
    """Such a name could be in any slot."""
    with pytest.raises(ValueError, match=r"TYPE:TARGET|has no channel|a target"):
        sharded_channel(channel)


@given(st.builds(Topic, st.sampled_from(SubscriptionType), targets))
def test_everything_of_a_topic_is_in_one_slot(topic: Topic) -> None:
    """Its channels, which are read back by their plain names, and its keys."""
    names = [sharded_channel(channel) for channel in topic.channels]
    assert [plain_channel(name.encode()).decode() for name in names] == topic.channels
    keys = [make(str(topic)) for make in (position_key, history_key)]
    keys.append(published_key(str(topic), "p"))
    assert len({key_slot(name.encode()) for name in names + keys}) == 1
