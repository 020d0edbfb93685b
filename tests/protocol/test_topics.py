"""Topics and channels: nothing hostile reaches Redis, and every name can be read back."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol.topics import (
    KINDS,
    TARGET_PATTERN,
    Kind,
    SubscriptionType,
    Topic,
    is_target,
    parse_channel,
    shared_topic,
    target_problem,
)
from tests.helpers.targets import SAMPLES, targets

topics = st.builds(Topic, st.sampled_from(SubscriptionType), targets)


def allowed(text: str) -> bool:
    """The rule for targets, word by word."""
    return (
        1 <= len(text) <= 64
        and all(
            character == " "
            or (
                character not in '*?[]{}\\"'
                and (unicodedata.category(character)[0] in "LMPS" or character.isdecimal())
            )
            for character in text
        )
        and len(text.encode()) <= 192
        and "  " not in text
        and text.strip(" ") == text
        and unicodedata.normalize("NFC", text) == text
    )


@pytest.mark.parametrize("target", SAMPLES)
def test_real_names_are_targets(target: str) -> None:
    """The names that exchanges, vendors and identity providers use are valid targets."""
    assert target_problem(target) is None
    assert allowed(target)


@given(st.text(max_size=80) | targets | st.text("ab :*{é \u0301", max_size=6))
def test_a_text_is_a_target_exactly_where_the_rule_allows_it(text: str) -> None:
    """The quick check of usual names and the look at each character are one rule."""
    assert is_target(text) == allowed(text)


@pytest.mark.parametrize("code", range(128))
def test_each_ascii_character_is_allowed_or_not(code: int) -> None:
    """Alone, and between two letters, where a space may be."""
    character = chr(code)
    assert is_target(character) == allowed(character)
    assert is_target(f"a{character}b") == allowed(f"a{character}b")


HOSTILE: list[object] = [
    *("*", "h?llo", "[ab]", "a\\b", "a\n", "\na", "a\x00", "\r\nPUBLISH x y", "{a}", 'a"b'),
    *(
        "",
        " ",
        " a",
        "a ",
        "a  b",
        "a\xa0b",
        "a\u3000b",
        "a\u2028b",
        "a\u200db",
        "\ufeffa",
        "a\x85",
    ),
    *("x" * 65, "\ue000", "\U000e0001", "\U0010ffff", "\ufdd0", "\ud800", "½", "𝄞" * 49),
    *(5, 5.0, True, None, [], ["A"], {}, b"A"),
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_hostile_targets_are_refused(hostile: object) -> None:
    """Globs, hash tags, control, format and unassigned characters, other types are no targets."""
    assert not is_target(hostile)
    with pytest.raises(ValueError, match="invalid target"):
        Topic(SubscriptionType.STOCK, hostile)  # type: ignore[arg-type]


def test_a_shared_topic_is_one_object() -> None:
    """All who ask for a topic get the same; each type has its own."""
    topic = shared_topic(SubscriptionType.STOCK, "005930")
    assert topic == Topic(SubscriptionType.STOCK, "005930")
    assert shared_topic(SubscriptionType.STOCK, "005930") is topic
    assert shared_topic(SubscriptionType.SECTOR, "005930") == Topic.parse("sector:005930")


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_a_hostile_target_is_never_shared(hostile: object) -> None:
    """It is refused the second time as well."""
    for _ in range(2):
        with pytest.raises((ValueError, TypeError)):
            shared_topic(SubscriptionType.STOCK, hostile)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (5, "a string"),
        ("", "1 to 64 letters, marks, digits"),
        ("삼" * 65, "1 to 64 letters, marks, digits"),
        ("𝄞" * 49, "at most 192 bytes of UTF-8"),
        ("a*", "without * ?"),
        ("a  b", "single spaces"),
        (" a", "between other characters"),
        ("e\u0301", "normalization form C (NFC)"),
    ],
)
def test_a_refusal_gives_its_reason(value: object, reason: str) -> None:
    """The text says what to change."""
    assert reason in str(target_problem(value))


def test_only_a_target_of_possible_size_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """One as large as a message has 65,000 characters, and a request up to 100 targets."""
    looked_at: list[str] = []

    def may_be_in_target(character: str) -> bool:
        looked_at.append(character)
        return True

    monkeypatch.setattr("streamer.protocol.topics._may_be_in_target", may_be_in_target)
    assert target_problem("a" * 65_000) is not None
    assert not looked_at
    assert target_problem("삼성 전자") is None
    assert looked_at


def test_the_longest_targets_are_taken() -> None:
    """64 characters, and 192 bytes."""
    assert is_target("삼" * 64)
    assert is_target("𝄞" * 48)


@given(topics)
def test_a_topic_is_read_back_from_its_text(topic: Topic) -> None:
    """`parse` is the inverse of `str`: the text is split at its first colon."""
    assert Topic.parse(str(topic)) == topic


@pytest.mark.parametrize("text", ["", "stock", ":", ":A", "bond:A", "Stock:A", "stock :A"])
def test_what_names_no_type_is_explained(text: str) -> None:
    """Text without a known type is refused by naming the types there are."""
    with pytest.raises(ValueError, match="stock, market, sector, watchlist, user"):
        Topic.parse(text)


@pytest.mark.parametrize("text", ["stock:", "stock: A", "stock:A*"])
def test_what_names_no_target_is_explained(text: str) -> None:
    """Text with a bad target is refused by saying what is wrong with it."""
    with pytest.raises(ValueError, match="a target"):
        Topic.parse(text)


def test_each_type_carries_its_kinds_on_channels_of_their_own() -> None:
    """The channel names are those of the wire contract."""
    channels = {
        channel for subscription_type in KINDS for channel in Topic(subscription_type, "X").channels
    }
    assert channels == {
        "stock:X:price",
        "stock:X:orderbook",
        "market:X:status",
        "sector:X:price",
        "watchlist:X:price",
        "alerts:X",
        "notifications:X",
    }


@given(topics)
def test_a_channel_is_read_back(topic: Topic) -> None:
    """`parse_channel` is the inverse of `Topic.channel` for each kind that the topic carries."""
    for kind in topic.kinds:
        assert parse_channel(topic.channel(kind)) == (topic, kind)


CHANNELS_OF_NO_TOPIC = [
    *("", "price", "stock:A", "stock:A:status", "market:A:price", "stock::price"),
    *("alerts", "alerts:", "alerts: a", "user:u1:alerts", "user:u1"),
]


@pytest.mark.parametrize("channel", CHANNELS_OF_NO_TOPIC)
def test_a_channel_of_no_topic_is_refused(channel: str) -> None:
    """A channel that no topic has is an error."""
    with pytest.raises(ValueError, match=r"TYPE:TARGET|has no channel|a target"):
        parse_channel(channel)


@given(st.text(max_size=20) | st.builds("{}:{}".format, st.sampled_from(Kind), st.text()))
def test_a_channel_has_one_spelling(text: str) -> None:
    """A text is read as a channel only if it is the name that the topic gives that channel."""
    try:
        topic, kind = parse_channel(text)
    except ValueError:
        return
    assert topic.channel(kind) == text


def test_events_have_no_last_known_value() -> None:
    """Events are no states: market_status says how a market is now, an alert that it occurred."""
    assert {kind for kind in Kind if kind.is_event} == set(KINDS[SubscriptionType.USER])


def test_what_each_message_says_names_stocks_and_markets_only() -> None:
    """Only their messages must be about the target of the topic."""
    keys = {type_: Topic(type_, "X").key for type_ in SubscriptionType}
    assert {type_ for type_, key in keys.items() if key == "X"} == {"stock", "market"}
    assert set(keys.values()) == {"X", None}


@given(targets)
def test_the_schemas_pattern_takes_every_target(target: str) -> None:
    """It is wider than the rule, since JSON Schema cannot say all of it, and never narrower."""
    assert re.search(TARGET_PATTERN, target)


@pytest.mark.parametrize(
    "hostile", ["*", "h?llo", "[ab]", "a\\b", "{a}", 'a"b', "a\n", "\x00", "", " a", "a ", "a  b"]
)
def test_the_schemas_pattern_refuses_what_is_hostile(hostile: str) -> None:
    """Nothing that would be a glob, a hash tag or a control character passes a schema."""
    assert not re.search(TARGET_PATTERN, hostile)
