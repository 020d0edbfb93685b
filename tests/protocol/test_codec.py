"""The codec: what fits gets through to the letter, and nothing that clients send breaks it.

Covers streamer.protocol.shapes.
"""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import cattrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol import codec, messages
from streamer.protocol.codec import (
    CONVERTER,
    decode_client,
    decode_publication,
    encode,
    encode_request,
    utc_timestamp,
)
from streamer.protocol.errors import ErrorCode, InvalidPublicationError, ProtocolError
from streamer.protocol.messages import GapReason, MarketPhase, Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType

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


def refused(text: str | bytes) -> ProtocolError:
    """The error that a client's message is answered with."""
    with pytest.raises(ProtocolError) as caught:
        decode_client(text)
    return caught.value


def subscribe(text: str) -> str:
    """A subscribe message that ends in this text."""
    return f'{{"type":"subscribe","subscription_type":"stock","targets":["A"],{text}}}'


# Client messages

positions = st.builds(Position, st.text(max_size=64), st.integers(min_value=0, max_value=2**53 - 1))
request_ids = st.none() | st.text(max_size=64) | st.integers(-(2**63), 2**63 - 1)
client_messages = st.one_of(
    st.builds(
        messages.Subscribe,
        st.just(SubscriptionType.STOCK),
        st.lists(st.text() | st.integers(0, 9) | st.none(), max_size=5),
        kinds=st.none() | st.just([Kind.ORDERBOOK]),
        max_rate=st.none() | st.floats(min_value=0.1, max_value=1e9),
        snapshot=st.booleans(),
        since=st.none() | st.dictionaries(st.text(), positions, max_size=3),
        request_id=request_ids,
    ),
    st.builds(
        messages.Unsubscribe,
        st.sampled_from(SubscriptionType),
        st.lists(st.text(), max_size=5),
        request_id=request_ids,
    ),
    st.builds(messages.Ping, request_ids),
    st.builds(messages.RefreshToken, st.text(), request_ids),
    st.builds(
        messages.Reconnect,
        st.text(),
        st.dictionaries(st.text(), positions, max_size=3),
        request_ids,
    ),
)


@given(client_messages)
def test_a_client_message_is_read_back(message: messages.ClientMessage) -> None:
    """What `encode_request` writes, `decode_client` reads as the same message."""
    assert decode_client(encode_request(message)) == message


def test_what_is_not_given_takes_its_default() -> None:
    """The shortest subscribe asks for everything, conflated when behind, with snapshots."""
    decoded = decode_client('{"type":"subscribe","subscription_type":"stock","targets":["A"]}')
    assert decoded == messages.Subscribe(SubscriptionType.STOCK, ["A"])
    assert decode_client(subscribe('"mode":"all"')) == attrs.evolve(decoded, mode=Mode.ALL)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
members_of_messages = st.sampled_from(
    [field.name for model in messages.CLIENT_MESSAGES for field in attrs.fields(model)]
)


@given(
    st.one_of(
        st.binary(),
        st.text(st.characters()),
        json_values.map(json.dumps),
        st.builds(
            lambda type_, members: json.dumps(members | {"type": type_}),
            st.sampled_from([model.type for model in messages.CLIENT_MESSAGES]),
            st.dictionaries(members_of_messages, json_values),
        ),
    )
)
def test_whatever_a_client_sends_is_a_message_or_a_protocol_error(text: str | bytes) -> None:
    """No bytes raise anything that would end the connection's task, or an answer too large."""
    try:
        decode_client(text)
    except ProtocolError as error:
        answer = messages.Error(error.code, error.message, error.details, error.request_id)
        assert len(encode(answer, NOON)) < 20_000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", ErrorCode.INVALID_JSON),
        ("{", ErrorCode.INVALID_JSON),
        (b"\xff", ErrorCode.INVALID_JSON),
        ("\ud800", ErrorCode.INVALID_JSON),
        (b'\xef\xbb\xbf{"type":"ping"}', ErrorCode.INVALID_JSON),
        ('{"type":"ping"}\0', ErrorCode.INVALID_JSON),
        ('{"type":"ping"}{"type":"ping"}', ErrorCode.INVALID_JSON),
        ("{'type':'ping'}", ErrorCode.INVALID_JSON),
        ('{"type":"ping","x":NaN}', ErrorCode.INVALID_JSON),
        ('{"type":"ping","x":1e999}', ErrorCode.INVALID_JSON),
        ('{"type":"ping","x":"\\ud800"}', ErrorCode.INVALID_JSON),
        ("[" * 100_000, ErrorCode.INVALID_JSON),
        ("5", ErrorCode.INVALID_MESSAGE),
        ("null", ErrorCode.INVALID_MESSAGE),
        ('["type"]', ErrorCode.INVALID_MESSAGE),
        ("{}", ErrorCode.MISSING_TYPE),
        ('{"Type":"ping"}', ErrorCode.MISSING_TYPE),
        ('{"type":"pong"}', ErrorCode.UNKNOWN_MESSAGE_TYPE),
        ('{"type":"PING"}', ErrorCode.UNKNOWN_MESSAGE_TYPE),
        ('{"type":null}', ErrorCode.UNKNOWN_MESSAGE_TYPE),
        ('{"type":["ping"]}', ErrorCode.UNKNOWN_MESSAGE_TYPE),
        (f'{{"type":{"[" * 1000}{"]" * 1000}}}', ErrorCode.UNKNOWN_MESSAGE_TYPE),
        (f'{{"type":"{"x" * 10_000}"}}', ErrorCode.UNKNOWN_MESSAGE_TYPE),
        ('{"type":"subscribe"}', ErrorCode.INVALID_MESSAGE),
    ],
)
def test_each_fault_has_its_code(text: str | bytes, code: ErrorCode) -> None:
    """The client learns from the code what kind of mistake it made, in a short message."""
    error = refused(text)
    assert error.code is code
    assert len(error.message) < 200


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"subscription_type":"bond"', "$.subscription_type: expected one of stock, market"),
        ('"subscription_type":[]', "$.subscription_type: expected one of"),
        ('"targets":"A"', "$.targets: expected a list, got str"),
        ('"targets":null', "$.targets: expected a list, got null"),
        ('"targets":{"A":1}', "$.targets: expected a list, got dict"),
        ('"mode":"newest"', "$.mode: expected one of latest, all, got 'newest'"),
        ('"kinds":["trades"]', "$.kinds: expected one of price, orderbook"),
        ('"kinds":["status"]', "kinds of stock are price and orderbook"),
        ('"kinds":[]', "kinds of stock are price and orderbook"),
        ('"max_rate":"5"', "$.max_rate: expected int or float, got str"),
        ('"max_rate":true', "$.max_rate: expected int or float, got bool"),
        ('"max_rate":0', "'max_rate' must be > 0"),
        ('"max_rate":5,"mode":"all"', "max_rate merges messages"),
        ('"snapshot":1', "$.snapshot: expected bool, got int"),
        ('"since":[]', "$.since: expected an object, got list"),
        ('"since":{"A":5}', "$.since: expected an object, got int"),
        ('"since":{"A":{"sequence":5}}', "$.since.epoch: required field missing"),
        ('"since":{"A":{"epoch":"e","sequence":true}}', "expected int, got bool"),
        ('"since":{"A":{"epoch":"e","sequence":5.0}}', "expected int, got float"),
        ('"since":{"A":{"epoch":"e","sequence":-1}}', "'sequence' must be >= 0"),
        ('"since":{"A":{"epoch":"e","sequence":9007199254740992}}', "'sequence' must be <"),
        ('"since":{"A":{"epoch":5,"sequence":1}}', "$.since.epoch: expected str, got int"),
        ('"request_id":1.5', "$.request_id: expected str or int or null, got float"),
        ('"request_id":false', "$.request_id: expected str or int or null, got bool"),
        ('"request_id":18446744073709551616', "$.request_id: expected str or int or null"),
        (f'"request_id":"{"x" * 65}"', "request_id is longer than 64 characters"),
    ],
)
def test_a_wrong_field_is_named(text: str, reason: str) -> None:
    """The answer says which field is wrong and what belongs there, in words and in details."""
    error = refused(subscribe(text))
    assert error.code is ErrorCode.INVALID_MESSAGE
    assert reason in error.message
    assert error.details is not None
    assert error.message == f"invalid subscribe: {error.details['errors'][0]}"  # type: ignore[index]


def test_reasons_are_bounded() -> None:
    """A reason quotes the fault, never all of it: the answer to 64 KiB of faults is short."""
    long = '"' + "x" * 60_000 + '"'
    error = refused(
        subscribe(
            f'"mode":{long},"kinds":[{long}],"max_rate":{long},"snapshot":{long},"targets":{long},'
            f'"subscription_type":{long},"since":{{{long}:{long}}},"request_id":[{long}]'
        )
    )
    assert error.details is not None
    reasons = error.details["errors"]
    assert isinstance(reasons, list)
    assert len(reasons) == 8
    assert max(map(len, reasons)) < 200


@pytest.mark.parametrize("rest", ['"type":"nope"', '"x":1', '"type":"unsubscribe"'])
def test_the_request_id_comes_back_with_the_error(rest: str) -> None:
    """A message that cannot be carried out is still answered to its request."""
    assert refused(f'{{"request_id":"r7",{rest}}}').request_id == "r7"
    assert refused(f'{{"request_id":[],{rest}}}').request_id is None


# Server messages


def test_an_encoded_message_says_its_type_and_time_and_leaves_out_nulls() -> None:
    """The JSON has what the contract names and nothing else."""
    gap = messages.Gap(SubscriptionType.STOCK, "A", GapReason.HISTORY_EXPIRED, "e", 5)
    assert orjson.loads(encode(gap, NOON)) == {
        "type": "gap",
        "timestamp": NOON,
        "subscription_type": "stock",
        "target": "A",
        "reason": "history_expired",
        "epoch": "e",
        "sequence": 5,
    }
    assert encode(messages.Pong(), NOON) == b'{"type":"pong","timestamp":"%s"}' % NOON.encode()


def test_a_batch_is_encoded_with_its_messages_types() -> None:
    """Each message in a batch says what it is, as it would on its own."""
    status = messages.MarketStatus("KOSPI", MarketPhase.OPEN, timestamp=NOON, sequence=1)
    decoded = orjson.loads(encode(messages.Batch([status], 1), NOON))
    assert decoded["messages"] == [orjson.loads(encode(status, NOON))]


@pytest.mark.parametrize("depth", [1, 1000])
def test_a_rejected_target_can_always_be_encoded(depth: int) -> None:
    """A target nested as deep as JSON may be read does not break the answer."""
    nested = orjson.loads("[" * depth + "]" * depth)
    rejected = messages.RejectedTarget(nested, ErrorCode.INVALID_TARGET, "no")
    answer = messages.Subscribed(SubscriptionType.STOCK, [], [rejected], {})
    assert orjson.loads(encode(answer, NOON))["rejected"][0]["target"].startswith("[")


def test_the_time_is_written_in_utc_with_milliseconds() -> None:
    """Whatever the zone of a moment, the text is UTC with Z; without one it is now."""
    seoul = timezone(timedelta(hours=9))
    assert utc_timestamp(datetime(2024, 8, 9, 21, tzinfo=seoul)) == "2024-08-09T12:00:00.000Z"
    before = datetime.now(UTC)
    text = utc_timestamp()
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) >= before - timedelta(milliseconds=1)


# Publications


@every_kind
def test_a_complete_publication_is_forwarded_byte_for_byte(kind: Kind) -> None:
    """What is complete is not rewritten; only the whitespace around it goes."""
    raw = publication(kind)
    for text in (raw, b" \r\n\t" + raw + b"\n", json.dumps(json.loads(raw), indent=2).encode()):
        decoded = decode_publication(kind, None, text)
        assert decoded == codec.DecodedPublication(text.strip(), None)


@pytest.mark.parametrize(
    "number", ["1", "1.50", "-0", "-0.0", "1E5", "1e-999", "0.1000000000000000000000001", "9" * 300]
)
@pytest.mark.parametrize("time", [NOON, None])
def test_a_number_stays_as_it_was_written(number: str, time: str | None) -> None:
    """No digit is rounded or reformatted, whether the message is forwarded or completed."""
    raw = publication(Kind.PRICE, price="PRICE", timestamp=time)
    text = decode_publication(Kind.PRICE, "A", raw.replace(b'"PRICE"', number.encode())).text
    assert f'"price":{number},'.encode() in text


whitespace = st.text(" \t\r\n", max_size=2)


@st.composite
def json_texts(draw: st.DrawFn, depth: int = 3) -> str:
    """The text of a JSON value in any spelling: whitespace, escapes, forms of numbers."""
    if depth == 0 or draw(st.booleans()):
        return draw(
            st.from_regex(
                r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True
            )
            | st.sampled_from(["null", "true", "false", r'"\u0041\/\"\\"', '"[{,}]"', '"\\\\"'])
            | st.builds(json.dumps, st.text(st.characters(exclude_categories=["Cs"])))
        )
    inner = [draw(whitespace) + draw(json_texts(depth - 1)) for _ in range(draw(st.integers(0, 3)))]
    if draw(st.booleans()):
        return "[" + ",".join(inner) + draw(whitespace) + "]"
    return "{" + ",".join(f'"k{n}"{draw(whitespace)}:{text}' for n, text in enumerate(inner)) + "}"


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@given(
    st.dictionaries(names, json_texts(), max_size=6),
    whitespace,
    st.booleans(),
)
def test_members_are_found_to_the_letter(
    members: dict[str, str], space: str, ascii_only: bool
) -> None:
    """An object is taken apart into its members' own texts, however it is spelt."""
    texts = {
        name: json.dumps(name, ensure_ascii=ascii_only) + space + ":" + space + value
        for name, value in members.items()
    }
    text = space + "{" + space + f"{space},{space}".join(texts.values()) + space + "}" + space
    assert dict(codec._members(text)) == texts


FIELDS_AND_RESERVED = {
    *(field.name for field in attrs.fields(messages.PriceUpdate)),
    *codec.RESERVED,
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
    members = dict(codec._members(decoded.text.decode()))
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
    raw = publication(kind, snapshot=True, previous=3, epoch="e")
    decoded = decode_publication(kind, None, raw)
    assert orjson.loads(decoded.text) == orjson.loads(publication(kind))


@every_kind
def test_a_producers_position_is_taken_and_kept(kind: Kind) -> None:
    """An epoch with a sequence places the message, which is forwarded whole if it is complete."""
    raw = publication(kind, epoch="e", sequence=5)
    assert decode_publication(kind, None, raw) == codec.DecodedPublication(raw, Position("e", 5))
    rewritten = decode_publication(kind, None, publication(kind, epoch="e", sequence=5, previous=1))
    assert rewritten.position == Position("e", 5)
    assert orjson.loads(rewritten.text) == orjson.loads(raw)


@pytest.mark.parametrize("half", [{"epoch": "e"}, {"sequence": 5}, {"epoch": 5, "sequence": 5}])
def test_half_a_position_is_none(half: dict[str, Any]) -> None:
    """A sequence without its epoch would lie after a restart, so the server numbers instead."""
    decoded = decode_publication(Kind.PRICE, "A", publication(Kind.PRICE, **half))
    assert decoded == codec.DecodedPublication(decoded.text, None)
    assert orjson.loads(decoded.text) == orjson.loads(publication(Kind.PRICE))


@pytest.mark.parametrize(
    ("epoch", "sequence"), [("e", -1), ("e", 2**53), ("e" * 65, 1), ("e", 1.5), ("e", True)]
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
    for wrong in ("pong", None, ["price_update"], "x" * 1000):
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
        b"\xef\xbb\xbf" + publication(Kind.PRICE),
        b"\x0b" + publication(Kind.PRICE),
        publication(Kind.PRICE) + b"\x0c",
        publication(Kind.PRICE) * 2,
        publication(Kind.PRICE)[:-1],
        price_ending_in('"x":NaN'),
        price_ending_in('"x":1e999'),
        price_ending_in('"x":' + "9" * 5000),
        price_ending_in(r'"x":"\ud800"'),
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
    with pytest.raises(InvalidPublicationError, match=r"not JSON|not a JSON object"):
        decode_publication(Kind.PRICE, "A", raw)


@pytest.mark.parametrize("depth", [1, 1000])
def test_depth_that_may_be_read_may_be_rewritten(depth: int) -> None:
    """Deep nesting cannot exhaust the stack of the task that reads for everyone."""
    nested = '"x":' + "[" * depth + "]" * depth
    decoded = decode_publication(Kind.PRICE, "A", price_ending_in(f'{nested},"sequence":1'))
    assert nested.encode() in decoded.text


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
    assert codec._FITS[kind](message) == structured
