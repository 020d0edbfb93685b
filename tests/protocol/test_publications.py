"""Publications: what fits gets through to the letter, and nothing that no client could read.

Covers streamer.protocol.shapes.
"""

import json
from typing import Any

import attrs
import cattrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol import messages, publications
from streamer.protocol.codec import CONVERTER, utc_timestamp
from streamer.protocol.errors import InvalidPublicationError
from streamer.protocol.json_text import split_members
from streamer.protocol.messages import Position
from streamer.protocol.publications import DecodedPublication, decode_publication
from streamer.protocol.topics import Kind, SubscriptionType
from tests.helpers.json_texts import json_texts, names

NOON = "2024-08-09T12:00:00Z"

PUBLICATIONS: dict[Kind, dict[str, Any]] = {
    Kind.PRICE: {
        "stock_code": "A",
        "price": 1.5,
        "change": 0,
        "change_percent": -0.25,
        "volume": 100,
    },
    Kind.ORDERBOOK: {
        "stock_code": "A",
        "bids": [{"price": 1, "quantity": 2.5, "orders": 3}],
        "asks": [{"price": 2, "quantity": 1}, {"price": 3, "quantity": 1, "orders": None}],
    },
    Kind.STATUS: {"market": "A", "status": "open"},
    Kind.ALERT: {
        "alert_id": 7,
        "stock_code": "A",
        "alert_type": "above",
        "message": "up",
        "data": {"any": [1, None]},
    },
    Kind.NOTIFICATION: {
        "notification_id": "n",
        "title": "t",
        "message": "m",
        "notification_type": "news",
        "priority": "HIGH",
    },
}

every_kind = pytest.mark.parametrize("kind", Kind)


def publication(kind: Kind, /, **members: Any) -> bytes:
    """A complete publication, with these members as well or instead."""
    model = messages.DATA_MESSAGES[kind]
    return orjson.dumps({"type": model.type, "timestamp": NOON} | PUBLICATIONS[kind] | members)


def price_ending_in(text: str) -> bytes:
    """A complete price_update that ends in this text."""
    return publication(Kind.PRICE)[:-1] + b"," + text.encode() + b"}"


@every_kind
def test_a_complete_publication_is_forwarded_byte_for_byte(kind: Kind) -> None:
    """A complete message is not rewritten; only the whitespace around it goes."""
    raw = publication(kind)
    for text in (raw, b" \r\n\t" + raw + b"\n", json.dumps(json.loads(raw), indent=2).encode()):
        decoded = decode_publication(kind, None, text)
        assert decoded == DecodedPublication(text.strip(), None)


@pytest.mark.parametrize(
    "number",
    ["1", "1.50", "-0", "-0.0", "1E5", "1e-400", "0E-5", "0.1000000000000000000000001", "9" * 300],
)
@pytest.mark.parametrize("time", [NOON, None])
def test_a_number_stays_as_it_was_written(number: str, time: str | None) -> None:
    """No digit is rounded or reformatted, whether the message is forwarded or completed."""
    raw = publication(Kind.PRICE, price="PRICE", timestamp=time)
    text = decode_publication(Kind.PRICE, "A", raw.replace(b'"PRICE"', number.encode())).text
    assert f'"price":{number},'.encode() in text


FIELDS_AND_RESERVED = {
    *(field.name for field in attrs.fields(messages.PriceUpdate)),
    *publications._LOOKED_AT,
    "type",
}


@given(
    extra=st.dictionaries(names.filter(lambda name: name not in FIELDS_AND_RESERVED), json_texts()),
    reserved=st.dictionaries(st.sampled_from(["sequence", "previous"]), st.integers(0, 9)),
    timestamp=st.sampled_from([None, NOON, "2024-08-09T21:00:00+09:00"]),
)
def test_what_a_producer_adds_reaches_the_client_to_the_letter(
    extra: dict[str, str], reserved: dict[str, int], timestamp: str | None
) -> None:
    """Extra members keep their text, those of the server go, and the time is there."""
    own = PUBLICATIONS[Kind.PRICE] | reserved | ({"timestamp": timestamp} if timestamp else {})
    texts = {name: f"{json.dumps(name)}: {value}" for name, value in extra.items()}
    raw = ("{" + ",".join([json.dumps(own)[1:-1], *texts.values()]) + "}").encode()
    decoded = decode_publication(Kind.PRICE, "A", raw)
    members = dict(split_members(decoded.text.decode()))
    assert {name: text for name, text in members.items() if name in texts} == texts
    assert set(members) == {*PUBLICATIONS[Kind.PRICE], "type", "timestamp", *extra}
    if timestamp is not None:
        assert members["timestamp"] == f'"timestamp":"{NOON}"'


@pytest.mark.parametrize("name", ["sequence", r"sequ\u0065nce", r"\u0073equence"])
def test_a_reserved_member_is_removed_however_it_is_spelt(name: str) -> None:
    """A producer cannot number a topic's messages by escaping the name."""
    decoded = decode_publication(Kind.PRICE, "A", price_ending_in(f'"{name}":5'))
    assert "sequence" not in orjson.loads(decoded.text)
    assert decoded.position is None


@every_kind
def test_what_is_the_servers_to_say_is_removed(kind: Kind) -> None:
    """A producer can neither call its message a snapshot nor say what it follows."""
    raw = publication(kind, snapshot=True, previous=3, sequence=5)
    decoded = decode_publication(kind, None, raw)
    assert orjson.loads(decoded.text) == orjson.loads(publication(kind))


@every_kind
def test_a_producers_position_is_taken_and_kept(kind: Kind) -> None:
    """An epoch with a sequence places the message, which is forwarded whole if it is complete."""
    raw = publication(kind, epoch="e", sequence=5)
    assert decode_publication(kind, None, raw) == DecodedPublication(raw, Position("e", 5))
    rewritten = decode_publication(kind, None, publication(kind, epoch="e", sequence=5, previous=1))
    assert rewritten.position == Position("e", 5)
    assert orjson.loads(rewritten.text) == orjson.loads(raw)


@pytest.mark.parametrize("epoch", [{}, {"epoch": 5}, {"epoch": None}, {"epoch": [1]}])
def test_half_a_position_is_none(epoch: dict[str, Any]) -> None:
    """A sequence without its epoch would lie after a restart, so the server numbers instead."""
    decoded = decode_publication(Kind.PRICE, "A", publication(Kind.PRICE, sequence=5, **epoch))
    assert decoded == DecodedPublication(decoded.text, None)
    assert orjson.loads(decoded.text) == orjson.loads(publication(Kind.PRICE, **epoch))


@pytest.mark.parametrize("epoch", ["e", "e" * 65, 5, None, [1], {"a": 1}])
def test_an_epoch_without_a_sequence_is_the_producers_own(epoch: object) -> None:
    """It is passed on like any member, unless the publisher is about to write one itself."""
    raw = publication(Kind.PRICE, epoch=epoch)
    assert decode_publication(Kind.PRICE, "A", raw) == DecodedPublication(raw, None)
    text = decode_publication(Kind.PRICE, "A", raw, gets_position=True).text
    assert orjson.loads(text) == orjson.loads(publication(Kind.PRICE))


@pytest.mark.parametrize(
    "naming",
    [
        {"target": 80_000},
        {"target": "B"},
        {"subscription_type": "sector"},
        {"subscription_type": "premium", "target": "B"},
        {"subscription_type": ["sector"], "target": "B"},
        {"subscription_type": "sector", "target": "*"},
        {"subscription_type": "stock", "target": "A"},
    ],
)
def test_naming_members_are_the_producers_own_where_they_name_no_other_topic(
    naming: dict[str, Any],
) -> None:
    """A price target, say, reaches the clients of the stock as it was written."""
    raw = publication(Kind.PRICE, **naming)
    assert decode_publication(Kind.PRICE, "A", raw) == DecodedPublication(raw, None)


@pytest.mark.parametrize("subscription_type", SubscriptionType)
@pytest.mark.parametrize("kind", [Kind.PRICE, Kind.ORDERBOOK, Kind.STATUS])
def test_no_producer_names_another_topic(kind: Kind, subscription_type: SubscriptionType) -> None:
    """A client that has both would take the message for one of the other topic."""
    raw = publication(kind, subscription_type=subscription_type, target="B", epoch=1)
    text = decode_publication(kind, "A", raw).text
    assert orjson.loads(text) == orjson.loads(publication(kind, epoch=1))


@pytest.mark.parametrize("naming", [{"target": "B"}, {"subscription_type": 5}, {"target": None}])
@pytest.mark.parametrize("kind", [Kind.PRICE, Kind.ALERT, Kind.NOTIFICATION])
def test_where_the_server_names_the_topic_nobody_else_does(
    kind: Kind, naming: dict[str, Any]
) -> None:
    """No member is there twice: on a sector, a watchlist and to a user they are the server's."""
    text = decode_publication(kind, None, publication(kind, **naming)).text
    assert orjson.loads(text) == orjson.loads(publication(kind))


@pytest.mark.parametrize(
    ("epoch", "sequence"),
    [("e", -1), ("e", 0), ("e", 2**53), ("e" * 65, 1), ("e", 1.5), ("e", True)],
)
def test_an_impossible_position_is_refused(epoch: str, sequence: float) -> None:
    """A position that no client could count on is a producer's fault, not to be papered over."""
    with pytest.raises(InvalidPublicationError, match=r"sequence|epoch"):
        decode_publication(Kind.PRICE, "A", publication(Kind.PRICE, epoch=epoch, sequence=sequence))


def test_of_a_member_that_is_there_twice_the_last_counts() -> None:
    """As in browsers: the last is validated, and is what stays of a message that is rewritten."""
    with pytest.raises(InvalidPublicationError, match="price: expected int or float, got str"):
        decode_publication(Kind.PRICE, "A", price_ending_in('"price":"x"'))
    text = decode_publication(
        Kind.PRICE, "A", price_ending_in('"price":2.50,"sequence":1,"sequence":2')
    ).text
    assert text.count(b'"price"') == 1
    assert b'"price":2.50' in text
    assert b"sequence" not in text


@every_kind
def test_a_type_that_is_missing_is_that_of_the_channel(kind: Kind) -> None:
    """The channel tells what its messages are; one that says otherwise is refused."""
    raw = orjson.dumps(PUBLICATIONS[kind] | {"timestamp": NOON})
    decoded = orjson.loads(decode_publication(kind, None, raw).text)
    assert decoded == orjson.loads(publication(kind))
    assert (
        orjson.loads(decode_publication(kind, None, publication(kind, type=None)).text) == decoded
    )
    for wrong in ("pong", 0, False, ["price_update"], "x" * 1000):
        with pytest.raises(InvalidPublicationError, match=r"^type .{1,50} where"):
            decode_publication(kind, None, publication(kind, type=wrong))


@pytest.mark.parametrize("kind", [Kind.PRICE, Kind.ORDERBOOK, Kind.STATUS])
def test_a_message_is_about_what_its_channel_is_about(kind: Kind) -> None:
    """A subscriber of A never gets B; where any may come (a sector), none is refused."""
    raw = publication(kind)
    assert decode_publication(kind, "A", raw) == decode_publication(kind, None, raw)
    with pytest.raises(InvalidPublicationError, match="is 'A' on the channel of 'B'"):
        decode_publication(kind, "B", raw)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("2024-08-09T12:00:00.123456789Z", "2024-08-09T12:00:00.123456789Z"),
        ("2024-08-09T12:00:00", "2024-08-09T12:00:00Z"),
        ("2024-08-09 12:00:00.5", "2024-08-09T12:00:00.5Z"),
        ("2024-08-09t12:00:00z", "2024-08-09T12:00:00Z"),
        ("2024-08-09 12:00:00Z", "2024-08-09T12:00:00Z"),
        ("2024-08-09T12:00:00-00:00", "2024-08-09T12:00:00Z"),
        ("2024-08-09T08:59:59.123456789+09:00", "2024-08-08T23:59:59.123456789Z"),
        ("2024-02-29T20:00:00-05:30", "2024-03-01T01:30:00Z"),
    ],
)
def test_a_timestamp_reaches_the_client_in_utc(written: str, sent: str) -> None:
    """Any RFC 3339 moment, and one without offset, is sent with Z and all digits of its second."""
    decoded = decode_publication(Kind.PRICE, "A", publication(Kind.PRICE, timestamp=written))
    assert orjson.loads(decoded.text)["timestamp"] == sent


@pytest.mark.parametrize("absent", [{"timestamp": None}, {}])
def test_a_missing_timestamp_is_now(absent: dict[str, Any]) -> None:
    """A producer without a clock is served by the server's."""
    before = utc_timestamp()
    raw = orjson.dumps(PUBLICATIONS[Kind.PRICE] | absent)
    sent = orjson.loads(decode_publication(Kind.PRICE, "A", raw).text)["timestamp"]
    assert before <= sent <= utc_timestamp()


@pytest.mark.parametrize(
    "timestamp",
    [
        *(
            "",
            "now",
            "2024-08-09",
            "20240809T120000Z",
            "2024-08-09T12:00Z",
            "2024-08-09T12:00:00,5Z",
        ),
        *(
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00",
            "2024-08-09T24:00:00Z",
            "0000-01-01T00:00:00Z",
        ),
        *("2016-12-31T23:59:60Z", "2024-08-09T12:00:00+24:00", "2024-08-09T12:00:00+0900"),
        *("0001-01-01T00:00:00+09:00", "9999-12-31T23:59:59-09:00"),
        *("2024-08-09T12:00:00Z\n", "٢٠٢٤-08-09T12:00:00Z", "2024-08-09T12:00:00." + "x" * 1000),
        *("2024-08-09T12:00:00.٣+09:00", "2024-08-09T12:00:00Z+09:00"),
        *(1723204800, 1723204800.5, True, []),
    ],
    ids=lambda timestamp: ascii(timestamp)[:30],
)
def test_what_is_no_moment_is_refused(timestamp: object) -> None:
    """A time that a client could not read, or that never was, is not forwarded."""
    with pytest.raises(InvalidPublicationError, match="timestamp") as caught:
        decode_publication(Kind.PRICE, "A", publication(Kind.PRICE, timestamp=timestamp))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"\xef\xbb\xbf" * 2 + publication(Kind.PRICE),
        b"\x0b" + publication(Kind.PRICE),
        publication(Kind.PRICE) + b"\x0c",
        publication(Kind.PRICE) * 2,
        publication(Kind.PRICE)[:-1],
        price_ending_in('"x":NaN'),
        price_ending_in(r'"x":"\ud800",'),
        price_ending_in('"x":"X"').replace(b"X", b"\xff"),
        price_ending_in('"x":' + "[" * 1100 + "]" * 1100),
        b"null",
        b"[]",
        b'"price_update"',
    ],
    ids=lambda raw: ascii(raw[:10]),
)
def test_what_is_not_one_json_object_is_refused(raw: bytes) -> None:
    """Broken JSON and what extends it are a producer's fault that no client sees."""
    with pytest.raises(InvalidPublicationError, match=r"not JSON|not a JSON object|nested"):
        decode_publication(Kind.PRICE, "A", raw)


BOM = b"\xef\xbb\xbf"


@every_kind
def test_a_byte_order_mark_is_not_passed_on(kind: Kind) -> None:
    """Editors and shells of Windows write one before a text."""
    raw = publication(kind)
    assert decode_publication(kind, None, BOM + raw) == DecodedPublication(raw, None)


@pytest.mark.parametrize("text", [r"\ud800", r"\udfffx", r"\ud83d\ud83d\ude00"])
def test_a_lone_surrogate_is_passed_on_as_written(text: str) -> None:
    """In a member, in a name, and in a message that is rewritten."""
    for raw in (
        price_ending_in(f'"x":"{text}"'),
        price_ending_in(f'"{text}":1'),
        publication(Kind.NOTIFICATION, title="TEXT").replace(b"TEXT", text.encode()),
    ):
        kind = Kind.NOTIFICATION if b"title" in raw else Kind.PRICE
        assert decode_publication(kind, None, raw) == DecodedPublication(raw, None)
        rewritten = decode_publication(kind, None, raw[:-1] + b',"sequence":5}').text
        assert json.loads(rewritten) == json.loads(raw)


def test_a_position_with_a_lone_surrogate_is_refused() -> None:
    """An epoch goes into the server's own messages."""
    with pytest.raises(InvalidPublicationError, match="epoch"):
        decode_publication(Kind.PRICE, "A", price_ending_in(r'"epoch":"\ud800","sequence":1'))


def test_a_long_id_is_an_integer() -> None:
    """An alert may have an id of any number of digits, though orjson reads it as a float."""
    raw = publication(Kind.ALERT, alert_id="ID").replace(b'"ID"', b"9" * 40)
    assert decode_publication(Kind.ALERT, None, raw) == DecodedPublication(raw, None)


@every_kind
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(kind: Kind, brackets: tuple[str, str]) -> None:
    """A client's parser can be relied on for 32 levels; beyond them the message is refused."""
    opening, closing = brackets
    for depth, is_taken in ((32, True), (33, False), (1000, False), (1100, False)):
        value = opening * (depth - 1) + "1" + closing * (depth - 1)
        raw = publication(kind)[:-1] + f',"x":{value}}}'.encode()
        if is_taken:
            assert decode_publication(kind, None, raw) == DecodedPublication(raw, None)
        else:
            with pytest.raises(InvalidPublicationError, match=r"nested more than 32 deep|not JSON"):
                decode_publication(kind, None, raw)


@pytest.mark.parametrize("value", ["[" * 40 + "]" * 40, "1e-30000000"])
@pytest.mark.parametrize("name", ["x", "epoch", "price", "volume"])
@pytest.mark.parametrize("left_out", [{}, {"type"}, {"timestamp"}, {"type", "timestamp"}])
def test_the_bounds_hold_for_every_member(value: str, name: str, left_out: set[str]) -> None:
    """In a message without type or timestamp, and in a member that a later one replaces, too."""
    complete = json.loads(publication(Kind.PRICE, change=3, change_percent=1))
    usual = {key: value for key, value in complete.items() if key not in left_out}
    raw = f'{{"{name}" :{value},{json.dumps(usual)[1:]}'.encode()
    with pytest.raises(InvalidPublicationError, match=r"nested more than 32|an exponent beyond"):
        decode_publication(Kind.PRICE, "A", raw)


def test_many_brackets_are_not_depth() -> None:
    """A deep order book, and a message with lists side by side, are taken."""
    levels = [{"price": n, "quantity": 1, "more": [[n]]} for n in range(100)]
    raw = publication(Kind.ORDERBOOK, bids=levels, asks=levels)
    assert decode_publication(Kind.ORDERBOOK, "A", raw) == DecodedPublication(raw, None)
    raw = publication(Kind.ALERT, data={"x": [[n] for n in range(100)], "y": "[{" * 100})
    assert decode_publication(Kind.ALERT, None, raw) == DecodedPublication(raw, None)


UNREADABLE_NUMBERS = [
    *(
        "1E-99999999999999999999",
        "1e-30000000",
        "1e-401",
        "-1.5E-401",
        "0e401",
        "0E999",
        "-0.0e+401",
    ),
    *("1e999", "9e399", "9" * 309, "1." + "1" * 1000, "0." + "0" * 1000 + "1", "1" * 5000),
]


@pytest.mark.parametrize("number", UNREADABLE_NUMBERS, ids=lambda number: str(number)[:12])
@pytest.mark.parametrize("place", ['"x":{}', '"x":[[{}]]', '"x":"{{[1e-9","y":[{}]'])
def test_a_number_that_a_client_cannot_read_is_refused(number: str, place: str) -> None:
    """Beyond a double's range, or of thousands of digits: wherever it is in the message."""
    raw = price_ending_in(place.replace("{}", number).replace("{{", "{"))
    with pytest.raises(InvalidPublicationError, match=r"a number|not JSON"):
        decode_publication(Kind.PRICE, "A", raw)


@pytest.mark.parametrize("number", UNREADABLE_NUMBERS, ids=lambda number: str(number)[:12])
def test_a_field_with_such_a_number_is_refused(number: str) -> None:
    """In a price, and in a level of an order book."""
    for kind, field in ((Kind.PRICE, "price"), (Kind.ORDERBOOK, "bids")):
        value = "N" if kind is Kind.PRICE else [{"price": 1, "quantity": "N"}]
        raw = publication(kind, **{field: value}).replace(b'"N"', number.encode())
        with pytest.raises(InvalidPublicationError, match=r"a number|not JSON"):
            decode_publication(kind, "A", raw)


@pytest.mark.parametrize(
    "text", ["9" * 2000, "1e-99999999", "0e-5", "e-" * 3000, "a" * 999 + "1" * 999]
)
def test_what_only_looks_like_such_a_number_is_passed_on(text: str) -> None:
    """In a string anything may be."""
    raw = publication(Kind.PRICE, note=text, change=0)
    assert decode_publication(Kind.PRICE, "A", raw) == DecodedPublication(raw, None)


@pytest.mark.parametrize("text", ["9" * 2000, "coinbase-pro", "7a0e4b0e999f", "0E-5", "e-" * 3000])
@pytest.mark.parametrize("kind", [Kind.PRICE, Kind.ORDERBOOK])
def test_a_string_that_looks_like_a_number_does_not_cost_a_look_at_each_token(
    kind: Kind, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes milliseconds for a large book, for each of its publications."""
    monkeypatch.delattr(publications, "check_bounds")
    raw = publication(kind, note=text, change=0)
    assert decode_publication(kind, "A", raw) == DecodedPublication(raw, None)


@given(st.dictionaries(st.text(max_size=3), json_texts(), max_size=4))
def test_every_number_within_the_bounds_is_taken(members: dict[str, str]) -> None:
    """However a message is spelt."""
    extra = "".join(f",{json.dumps(f'x{name}')}:{text}" for name, text in members.items())
    raw = publication(Kind.PRICE)[:-1] + extra.encode() + b"}"
    assert decode_publication(Kind.PRICE, "A", raw) == DecodedPublication(raw, None)


@pytest.mark.parametrize(
    ("kind", "members", "reason"),
    [
        (Kind.PRICE, {"price": "1.5"}, "$.price: expected int or float, got str"),
        (Kind.PRICE, {"price": True}, "$.price: expected int or float, got bool"),
        (Kind.PRICE, {"price": None}, "$.price: expected int or float, got null"),
        (Kind.PRICE, {"stock_code": 5930}, "$.stock_code: expected str, got int"),
        (Kind.PRICE, {"sequence": "1"}, "$.sequence: expected int, got str"),
        (Kind.PRICE, {"sequence": 1.0}, "$.sequence: expected int, got float"),
        (Kind.PRICE, {"snapshot": 1}, "$.snapshot: expected bool, got int"),
        (Kind.ORDERBOOK, {"bids": None}, "$.bids: expected a list, got null"),
        (Kind.ORDERBOOK, {"bids": {}}, "$.bids: expected a list, got dict"),
        (Kind.ORDERBOOK, {"bids": [[1, 2]]}, "$.bids: expected an object, got list"),
        (Kind.ORDERBOOK, {"bids": [{"price": 1}]}, "$.bids.quantity: required field missing"),
        (Kind.STATUS, {"status": "lunch"}, "$.status: expected one of open, closed"),
        (Kind.STATUS, {"status": ["open"]}, "$.status: expected one of open, closed"),
        (Kind.ALERT, {"data": []}, "$.data: expected an object, got list"),
        (Kind.ALERT, {"alert_id": 1.5}, "$.alert_id: expected str or int, got float"),
        (Kind.NOTIFICATION, {"priority": "high"}, "$.priority: expected one of LOW, NORMAL"),
    ],
)
def test_a_publication_that_does_not_fit_says_why(
    kind: Kind, members: dict[str, Any], reason: str
) -> None:
    """The log tells a producer which field is wrong."""
    with pytest.raises(InvalidPublicationError) as caught:
        decode_publication(kind, None, publication(kind, **members))
    assert reason in str(caught.value)


@every_kind
def test_a_required_member_is_required(kind: Kind) -> None:
    """Without any one of its required members a publication is refused."""
    for field in attrs.fields(messages.DATA_MESSAGES[kind]):
        if field.default is attrs.NOTHING:
            members = orjson.loads(publication(kind))
            del members[field.name]
            with pytest.raises(InvalidPublicationError, match=rf"\$\.{field.name}: required"):
                decode_publication(kind, None, orjson.dumps(members))


scalars = st.sampled_from(["A", "open", "HIGH", "", 0, 1.5, -1, True, None])
oddities = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.fixed_dictionaries({}, optional={"price": inner, "quantity": inner, "orders": inner})
    ),
    max_leaves=4,
)


@given(st.data())
def test_the_quick_check_and_the_converter_have_one_set_of_rules(data: st.DataObject) -> None:
    """A message that differs anywhere from a good one fits exactly when it can be structured."""
    kind = data.draw(st.sampled_from(Kind))
    model: type[Any] = messages.DATA_MESSAGES[kind]
    fields = st.sampled_from([field.name for field in attrs.fields(model)])
    message = PUBLICATIONS[kind] | data.draw(st.dictionaries(fields, oddities, max_size=2))
    for name in data.draw(st.lists(fields, max_size=1)):
        message.pop(name, None)
    try:
        CONVERTER.structure(message, model)
        structured = True
    except cattrs.BaseValidationError:
        structured = False
    assert bool(publications._FITS[kind](message)) == structured
