"""From the text of a WebSocket message to the messages in it."""

import json
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.client import (
    Alert,
    DecodeError,
    Gap,
    MarketStatus,
    Notification,
    OrderbookUpdate,
    PriceUpdate,
    Streamed,
    decode_server,
)
from streamer.client import messages as client_messages
from streamer.client.decode import Unknown
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
NUMBERS = ["0", "-0.0", "72500", "0.10", "1e3", "1.50E-7", "3.14159265358979323846", "9" * 5000]


def decode(**members: Any) -> Any:
    """The one message with these members."""
    (message,) = decode_server(json.dumps(members))
    return message


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_keeps_its_digits(number: str) -> None:
    """Whatever its notation and length; beyond the contract, too."""
    text = json.dumps(PRICE).replace("72500", number)
    (message,) = decode_server(f'{text[:-1]},"more":[{number}]}}')
    assert isinstance(message, PriceUpdate)
    assert message.price.as_tuple() == Decimal(number).as_tuple()
    (more,) = message.extra["more"]
    assert more == Decimal(number)


def test_every_data_message_has_its_type() -> None:
    """With its members converted and the rest in `extra`; null counts as left out."""
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
    )
    assert isinstance(notification, Notification)
    assert notification.priority is Priority.HIGH


def test_control_messages_are_those_of_the_protocol() -> None:
    """A gap has its text, too; what a later server may add is passed over."""
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
    """Byte for byte, with whatever space and order the sender uses."""
    first = json.dumps(PRICE)
    second = json.dumps(PRICE | {"sequence": 8, "nested": {"messages": [1, "]"]}}, indent=1)
    text = f' {{ "messages" : [ {first} ,{second}\n], "batch_size": 2, "type":"batch" }} '
    received = decode_server(text)
    assert all(isinstance(message, PriceUpdate) for message in received)
    assert [message.text for message in received if isinstance(message, Streamed)] == [
        first,
        second,
    ]
    assert decode_server('{"type":"batch","messages":[],"batch_size":0}') == []
    assert decode_server('{"messages":[],"type":"later"}') == [
        Unknown("later", '{"messages":[],"type":"later"}')
    ]


TEXTS = st.text('"\\[]{},: \té', max_size=5)
VALUES = TEXTS | st.lists(TEXTS, max_size=2) | st.dictionaries(TEXTS, TEXTS, max_size=2)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)


@given(st.lists(OBJECTS, max_size=3), OBJECTS, st.sampled_from([None, 1]))
def test_what_is_in_a_batch_is_found_whatever_it_looks_like(
    inner: list[dict[str, Any]], around: dict[str, Any], indent: int | None
) -> None:
    """The parts found by position are those that a JSON parser finds."""
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
        (json.dumps(PRICE).replace("72500", "1e99999999999999999999"), "InvalidOperation"),
        ('{"type":"price_update"}', "missing"),
        ('{"type":"market_status","timestamp":"t","sequence":1,"market":"K","status":"?"}', "'?'"),
        (
            '{"type":"orderbook_update","timestamp":"t","sequence":1,"stock_code":"","bids":1,"asks":[]}',
            "expected a list of objects",
        ),
        ('{"type":"batch","messages":[],"batch_size":1}', "a batch of 1 has 0 messages"),
        ('{"type":"batch","batch_size":1}', "a batch of 1 has 0 messages"),
        ('{"type":"batch","messages":1,"batch_size":1}', "a batch of 1 has 0 messages"),
        ('{"type":"batch","messages":[1],"batch_size":1}', "not an object with a type"),
        ('{"type":"batch" "messages":[]}', "expected , at character 16"),
        ('["messages"]', "expected { at character 0"),
        ('{"messages":[]} 1', "more than one JSON value"),
        ('{"messages":[', "Expecting value"),
        ('{"a":' + "[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(text: str, problem: str) -> None:
    """The error names the problem and shows the beginning of the text."""
    with pytest.raises(DecodeError, match="(?i)" + problem.replace("?", r"\?")):
        decode_server(text)


def test_the_models_have_every_member_of_the_protocol() -> None:
    """A field that is added there must not end up in `extra` here."""
    for model in messages.DATA_MESSAGES.values():
        ours = getattr(client_messages, model.__name__)
        assert set(attrs.fields_dict(model)) <= set(attrs.fields_dict(ours))
    levels = attrs.fields_dict(client_messages.PriceLevel)
    assert set(attrs.fields_dict(messages.PriceLevel)) == set(levels)


def test_about_is_for_those_that_say_it() -> None:
    """A message of a stream has to say what it is about."""
    with pytest.raises(NotImplementedError):
        _ = Streamed(timestamp="t", sequence=1).about
