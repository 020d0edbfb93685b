"""Decoding the text of a WebSocket message to the messages in it.

Covers streamer.client.messages.
"""

import json
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.client import (
    Alert,
    Data,
    Gap,
    MarketStatus,
    Notification,
    OrderbookUpdate,
    PriceUpdate,
    decode_server,
)
from streamer.client import messages as client_messages
from streamer.client.messages import Unknown, Unreadable
from streamer.protocol import messages
from streamer.protocol.messages import Connected, MarketPhase, Priority
from streamer.protocol.topics import Topic

PRICE = {
    "type": "price_update",
    "timestamp": "2024-08-09T00:00:00Z",
    "stock_code": "005930",
    "price": 72500,
    "change": -100,
    "change_percent": -0.14,
    "volume": 1000,
    "sequence": 7,
}
NUMBERS = [
    *("0", "-0.0", "72500", "0.10", "1e3", "1.50E-7", "3.14159265358979323846", "9" * 5000),
    *("1e-999", "1E+0000000999"),
]


def decode(**members: Any) -> Any:
    """The one message with these members."""
    (message,) = decode_server(json.dumps(members))
    return message


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_keeps_its_digits(number: str) -> None:
    """Decimals have the digits as written, in members beyond the contract too."""
    text = json.dumps(PRICE).replace("72500", number)
    (message,) = decode_server(f'{text[:-1]},"more":[{number}]}}')
    assert isinstance(message, PriceUpdate)
    assert message.price.as_tuple() == Decimal(number).as_tuple()
    (more,) = message.extra["more"]
    assert more == Decimal(number)


def test_every_data_message_has_its_type() -> None:
    """Members are converted, others are in `extra`, and null is the same as left out."""
    book = decode(
        type="orderbook_update",
        timestamp="t",
        stock_code="005930",
        bids=[{"price": 1.5, "quantity": 2, "orders": 3}],
        asks=[{"price": 2, "quantity": 1, "orders": None}],
        sequence=1,
        previous=None,
        venue="KRX",
    )
    assert isinstance(book, OrderbookUpdate)
    assert book.bids == (client_messages.PriceLevel(Decimal("1.5"), Decimal(2), 3),)
    assert book.asks[0].orders is None
    assert (book.about, book.follows, book.extra) == ("005930", 0, {"venue": "KRX"})
    status = decode(type="market_status", timestamp="t", market="K", status="open", sequence=9)
    assert isinstance(status, MarketStatus)
    assert (status.status, status.about, status.type) == (MarketPhase.OPEN, "K", "market_status")
    alert = decode(
        type="alert",
        timestamp="t",
        alert_id=1,
        stock_code="s",
        alert_type="a",
        message="m",
        data={},
        sequence=1,
    )
    assert isinstance(alert, Alert)
    notification = decode(
        type="notification",
        timestamp="t",
        notification_id="n",
        title="t",
        message="m",
        notification_type="n",
        priority="HIGH",
        sequence=2,
    )
    assert isinstance(notification, Notification)
    assert (alert.about, notification.about) == ("1", "n")
    assert notification.priority is Priority.HIGH


def test_control_messages_are_those_of_the_protocol() -> None:
    """A gap also keeps its text; members that a later server may add are ignored."""
    greeting = decode(
        type="connected", session_id="s", protocol=1, heartbeat_interval=25, limits={"a": 1}, new=1
    )
    assert greeting == Connected("s", 1, 25, {"a": 1})
    text = (
        '{"type":"gap","subscription_type":"stock","target":"1","reason":"overflow",'
        '"epoch":"e","sequence":4}'
    )
    (gap,) = decode_server(text)
    assert isinstance(gap, Gap)
    assert (gap.topic, gap.text) == (Topic.parse("stock:1"), text)
    assert decode(type="new") == Unknown("new", '{"type": "new"}')


def test_a_batch_is_taken_apart_and_each_message_keeps_its_text() -> None:
    """The text is kept byte for byte, whatever the white space and order of the batch."""
    first = json.dumps(PRICE)
    second = json.dumps(PRICE | {"sequence": 8, "nested": {"messages": [1, "]"]}}, indent=1)
    text = f' {{ "messages" : [ {first} ,{second}\n], "batch_size": 2, "type":"batch" }} '
    received = decode_server(text)
    assert all(isinstance(message, PriceUpdate) for message in received)
    assert [message.text for message in received if isinstance(message, Data)] == [
        first,
        second,
    ]
    assert decode_server('{"type":"batch","messages":[],"batch_size":0}') == []
    assert decode_server('{"messages":[],"type":"later"}') == [
        Unknown("later", '{"messages":[],"type":"later"}')
    ]


UNREADABLE_VALUES = ["1E-99999999999999999999", "1e1000", "[" * 1000 + "]" * 1000]


@pytest.mark.parametrize("value", UNREADABLE_VALUES)
def test_an_unreadable_message_has_its_position(value: str) -> None:
    """The members that place it are read, though other members of its JSON cannot be."""
    text = f'{json.dumps(PRICE | {"previous": 3})[:-1]}, "more": {value}}}'
    (message,) = decode_server(text)
    assert isinstance(message, Unreadable)
    assert (message.type, message.about) == ("price_update", "005930")
    assert (message.sequence, message.follows, message.snapshot) == (7, 3, False)
    assert message.text == text


@pytest.mark.parametrize("value", UNREADABLE_VALUES)
def test_the_others_of_a_batch_are_not_affected(value: str) -> None:
    """Only the message with the unreadable value is unreadable."""
    first, last = json.dumps(PRICE), json.dumps(PRICE | {"sequence": 9, "more": ["}", {"a": "]"}]})
    second = f'{json.dumps(PRICE | {"sequence": 8})[:-1]},"more":{value}}}'
    batch = f'{{"type":"batch","messages":[{first}, {second},{last}],"batch_size":3}}'
    received = decode_server(batch)
    assert [type(message) for message in received] == [PriceUpdate, Unreadable, PriceUpdate]
    assert [message.sequence for message in received] == [7, 8, 9]  # type: ignore[union-attr]
    assert [message.text for message in received] == [first, second, last]  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [[1, {"type": "batch"}], [], "batch", {"messages": []}])
def test_a_member_called_messages_is_like_any_other(value: object) -> None:
    """Outside a batch it is the producer's own member."""
    text = json.dumps({"messages": value} | PRICE)
    (message,) = decode_server(text)
    assert isinstance(message, PriceUpdate)
    assert (message.extra, message.text) == ({"messages": value}, text)


def test_values_of_a_later_version_are_kept_as_text() -> None:
    """Reasons, codes, statuses and limits that this version does not know spoil nothing."""
    gap = decode(
        type="gap", subscription_type="stock", target="1", reason="later", epoch="e", sequence=4
    )
    assert gap.reason == "later"
    error = decode(type="error", code="LATER", message="m")
    assert error.code == "LATER"
    subscribed = decode(
        type="subscribed",
        subscription_type="stock",
        targets=[],
        rejected=[{"target": "1", "code": "LATER", "message": "m"}],
        positions={},
    )
    assert subscribed.rejected[0].code == "LATER"
    greeting = decode(
        type="connected",
        session_id="s",
        protocol=1,
        heartbeat_interval=25,
        limits={"a": 1, "b": []},
    )
    assert greeting.limits == {"a": 1}
    status = decode(type="market_status", timestamp="t", market="K", status="later", sequence=9)
    assert status.status == "later"


TEXTS = st.text('"\\[]{},: \té', max_size=5)
VALUES = TEXTS | st.lists(TEXTS, max_size=2) | st.dictionaries(TEXTS, TEXTS, max_size=2)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)


@given(st.lists(OBJECTS, max_size=3), OBJECTS, st.sampled_from([None, 1]))
def test_what_is_in_a_batch_is_found_whatever_it_looks_like(
    inner: list[dict[str, Any]], around: dict[str, Any], indent: int | None
) -> None:
    """The messages are the ones that a JSON parser finds."""
    inner = [member | {"type": "later"} for member in inner]
    batch = around | {"messages": inner, "batch_size": len(inner), "type": "batch"}
    received = decode_server(json.dumps(batch, indent=indent, ensure_ascii=False))
    assert [json.loads(m.text) for m in received if isinstance(m, Unknown)] == inner


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "not an object with a type"),
        ("{}", "not an object with a type"),
        ('{"type":1}', "not an object with a type"),
        ('{"type":"a"} {}', "Extra data"),
        ('{"type":"gap"}', "required field missing"),
        (json.dumps(PRICE | {"price": "1"}), "expected a number, got str"),
        (json.dumps(PRICE | {"price": True}), "expected a number, got bool"),
        (json.dumps(PRICE | {"sequence": 1.5}), "sequence"),
        (json.dumps(PRICE | {"sequence": True}), "sequence"),
        (json.dumps(PRICE | {"stock_code": 5930}), "stock_code"),
        (json.dumps(PRICE).replace("72500", "NaN"), "NaN is not JSON"),
        (json.dumps(PRICE).replace("72500", "1e99999999999999999999"), "an exponent beyond"),
        ('{"type":"price_update"}', "missing"),
        (
            '{"type":"market_status","timestamp":"t","sequence":1,"market":"K","status":1}',
            "got int",
        ),
        (
            '{"type":"orderbook_update","timestamp":"t","sequence":1,"stock_code":"","bids":1,"asks":[]}',
            "expected a list of objects",
        ),
        ('{"type":"batch","messages":[],"batch_size":1}', "a batch of 1 has 0 messages"),
        ('{"type":"batch","batch_size":1}', "a batch of 1 has 0 messages"),
        ('{"type":"batch","messages":1,"batch_size":1}', "a batch of 1 has 0 messages"),
        (r'{"type":"b\u0061tch","batch_size":1}', "a batch of 1 has 0 messages"),
        (
            '{"type":"gap","subscription_type":"stock","target":"*","reason":"","epoch":"e","sequence":1}',
            "invalid target",
        ),
        ('{"type":"batch","messages":[1],"batch_size":1}', "not an object with a type"),
        ('{"type":"batch" "messages":[]}', "expected , at character 16"),
        ('["batch"]', "expected { at character 0"),
        ('{"type":"batch","messages":[]} 1', "more than one JSON value"),
        ('{"type":"batch","messages":[', "Expecting value"),
        ('{"a":' + "[" * 100_000, "recursion"),
    ],
)
def test_text_that_is_no_message_is_unreadable_with_the_reason(text: str, problem: str) -> None:
    """The message is unreadable; its problem says why and shows the beginning of the text."""
    *_, unreadable = decode_server(text)
    assert isinstance(unreadable, Unreadable)
    assert problem.lower() in unreadable.problem.lower()


def test_the_models_have_every_member_of_the_protocol() -> None:
    """A member of the protocol does not end up in `extra`."""
    for model in messages.DATA_MESSAGES.values():
        ours = getattr(client_messages, model.__name__)
        assert set(attrs.fields_dict(model)) <= set(attrs.fields_dict(ours))
    levels = attrs.fields_dict(client_messages.PriceLevel)
    assert set(attrs.fields_dict(messages.PriceLevel)) == set(levels)


def test_a_streamed_message_defines_what_it_is_about() -> None:
    """The base class has no stock code and no market."""
    with pytest.raises(NotImplementedError):
        _ = Data(timestamp="t", sequence=1).about
