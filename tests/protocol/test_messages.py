"""The models: complete, and strict about what cannot be carried out."""

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol import messages
from streamer.protocol.errors import ErrorCode
from streamer.protocol.messages import Mode, Position, RejectedTarget, Subscribe
from streamer.protocol.topics import KINDS, Kind, SubscriptionType

every_message = pytest.mark.parametrize(
    "model",
    [*messages.CLIENT_MESSAGES, *messages.SERVER_MESSAGES],
    ids=lambda model: str(model.__name__),
)


@every_message
def test_every_message_says_what_it_is(model: Any) -> None:
    """Each has a type for the wire and a docstring for the reference, and cannot be changed."""
    assert model.type
    assert model.__doc__
    assert model.__setattr__ is not object.__setattr__


@pytest.mark.parametrize("models", [messages.CLIENT_MESSAGES, messages.SERVER_MESSAGES])
def test_types_are_distinct(models: tuple[type[Any], ...]) -> None:
    """In one direction a type names one message."""
    assert len({model.type for model in models}) == len(models)


def test_every_kind_has_its_message() -> None:
    """There is a model for the message of every kind of channel."""
    assert set(messages.DATA_MESSAGES) == set(Kind)


@every_message
def test_a_null_field_is_left_out_only_where_null_is_the_default(model: Any) -> None:
    """A field may be None only if it is so by default, so that leaving it out loses nothing."""
    for field in attrs.fields(model):
        assert ("None" in str(field.type)) == (field.default is None), field.name


@pytest.mark.parametrize("sequence", [-1, 2**53])
def test_a_position_is_countable_in_a_browser(sequence: int) -> None:
    """A sequence is in the range in which an ECMAScript number counts by one."""
    with pytest.raises(ValueError, match="sequence"):
        Position("e", sequence)


def test_an_epoch_has_at_most_64_characters() -> None:
    """An epoch is kept for each session and topic, so its length is bounded."""
    assert Position("e" * 64, 2**53 - 1).epoch == "e" * 64
    with pytest.raises(ValueError, match="epoch"):
        Position("e" * 65, 0)


@pytest.mark.parametrize("request_id", ["x" * 65, 10**64])
def test_a_request_id_has_at_most_64_characters(request_id: str | int) -> None:
    """The text that an answer has to return is bounded."""
    with pytest.raises(ValueError, match="request_id is longer than 64"):
        messages.Ping(request_id=request_id)


@given(st.sampled_from(SubscriptionType), st.lists(st.sampled_from(Kind), max_size=3))
def test_kinds_are_some_of_those_that_the_type_carries(
    subscription_type: SubscriptionType, kinds: list[Kind]
) -> None:
    """Asking for nothing, or for what no such topic has, is an error rather than silence."""
    if kinds and set(kinds) <= set(KINDS[subscription_type]):
        Subscribe(subscription_type, ["A"], kinds=kinds)
    else:
        with pytest.raises(ValueError, match=f"kinds of {subscription_type} are"):
            Subscribe(subscription_type, ["A"], kinds=kinds)


@pytest.mark.parametrize(
    "max_rate", [0, -1, -0.5, 1e-320, 0.00099, 1e10, float("inf"), float("nan"), 10**400]
)
def test_a_rate_is_above_zero(max_rate: float) -> None:
    """From one message in 1,000 s to what no client could notice."""
    with pytest.raises(ValueError, match="max_rate"):
        Subscribe(SubscriptionType.STOCK, ["A"], max_rate=max_rate)


def test_a_rate_cannot_be_kept_without_merging() -> None:
    """max_rate belongs to mode latest; with mode all it would be a promise to break one of them."""
    assert Subscribe(SubscriptionType.STOCK, ["A"], max_rate=0.5).mode is Mode.LATEST
    with pytest.raises(ValueError, match="max_rate merges"):
        Subscribe(SubscriptionType.STOCK, ["A"], max_rate=5, mode=Mode.ALL)


def test_tokens_stay_out_of_logs() -> None:
    """The text form of a message, which may be logged, shows no token."""
    assert "secret" not in repr(messages.RefreshToken("secret"))
    assert "secret" not in repr(messages.Authenticate("secret"))
    assert "secret" not in repr(messages.TokenRefreshed("secret", 60))


@pytest.mark.parametrize("target", ["*", 5, 1.5, True, None])
def test_a_rejected_target_comes_back_as_it_was_sent(target: object) -> None:
    """The client finds what it sent in the answer."""
    assert RejectedTarget(target, ErrorCode.INVALID_TARGET, "no").target == target
