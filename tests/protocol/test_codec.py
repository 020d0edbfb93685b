"""The codec: what fits gets through to the letter, and nothing that clients send breaks it."""

import contextlib
import json
import re
from datetime import UTC, datetime, timedelta, timezone

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol import messages
from streamer.protocol.codec import (
    decode_client,
    encode,
    encode_request,
    request_id_of,
    utc_timestamp,
)
from streamer.protocol.errors import ErrorCode, ProtocolError
from streamer.protocol.messages import GapReason, MarketPhase, Mode, Position
from streamer.protocol.topics import Kind, SubscriptionType, is_target

NOON = "2024-08-09T12:00:00Z"


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
request_ids = (
    st.none() | st.text(st.characters(), max_size=64) | st.integers(-(10**63) + 1, 10**64 - 1)
)
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
    """`decode_client` reads the output of `encode_request` as the same message."""
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
        ('"max_rate":0', "'max_rate' must be >= 0.001"),
        ('"max_rate":5,"mode":"all"', "max_rate merges messages"),
        ('"snapshot":1', "$.snapshot: expected bool, got int"),
        ('"since":[]', "$.since: expected an object, got list"),
        ('"since":{"A":5}', "$.since: expected an object, got int"),
        ('"since":{"A":{"sequence":5}}', "$.since.epoch: required field missing"),
        ('"since":{"A":{"epoch":"e","sequence":true}}', "expected int, got bool"),
        ('"since":{"A":{"epoch":"e","sequence":5.0}}', "expected int, got float"),
        ('"since":{"A":{"epoch":"e","sequence":-1}}', "'sequence' must be >= 0"),
        (
            '"since":{"A":{"epoch":"e","sequence":9007199254740992}}',
            "'sequence' must be >= 0 and < 9007",
        ),
        ('"since":{"A":{"epoch":5,"sequence":1}}', "$.since.epoch: expected str, got int"),
        ('"request_id":1.5', "$.request_id: expected str or int or null, got float"),
        ('"request_id":false', "$.request_id: expected str or int or null, got bool"),
        ('"max_rate":1e-320', "'max_rate' must be >= 0.001"),
        ('"max_rate":1e999', "'max_rate' must be <= 1000000000.0"),
        (f'"max_rate":1{"0" * 400}', "'max_rate' must be <= 1000000000.0"),
        ('"since":{"A":{"epoch":"\\ud800","sequence":1}}', "'epoch' must be a string of at most"),
        ('"request_id":1e3', "$.request_id: expected str or int or null, got float"),
        (f'"request_id":{"1" * 65}', "request_id is longer than 64 characters"),
        (f'"request_id":{"1" * 5000}', "$.request_id: expected str or int or null"),
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


@pytest.mark.parametrize(
    "number", ["0", "-1", str(2**63), str(2**64), "1" * 64, "-" + "9" * 63, "12345678901234567890"]
)
def test_an_integer_request_id_comes_back_digit_by_digit(number: str) -> None:
    """Also where it has more than 64 bits, in answers and in errors."""
    message = decode_client(f'{{"request_id":{number},"type":"ping"}}')
    assert f'"request_id":{number}}}'.encode() in encode(messages.Pong(message.request_id), NOON)
    assert refused(f'{{"request_id":{number}}}').request_id == int(number)
    assert request_id_of(f' {{ "x" : [1 , {{}}] , "request_id" : {number} }} ') == int(number)


ODD_TARGETS = [
    *("1e999", "-1E-999", "1.50", "-0.0", "9" * 30, "1" + "0" * 5000, "null", "true"),
    *(r'"\ud800"', '"a\udfff"', "[]", "[[1.0,2],{}]", '{"a":[1e999,"\\ud83d"]}', '"*"', '""'),
]


def echo(text: str) -> list[str]:
    """The rejected targets of a request, each as the JSON text that goes back."""
    message = decode_client(text)
    assert isinstance(message, messages.Subscribe)
    rejected = [
        messages.RejectedTarget(target, ErrorCode.INVALID_TARGET, "no")
        for target in message.targets
        if not is_target(target)
    ]
    answer = encode(messages.Subscribed(message.subscription_type, [], rejected, {}), NOON).decode()
    return re.findall(r'\{"target":(.*?),"code"', answer)


@pytest.mark.parametrize("target", ODD_TARGETS, ids=lambda target: str(target)[:10])
def test_an_odd_target_comes_back_as_it_was_sent(target: str) -> None:
    """Alone and among others, whatever JSON it is; the good ones are taken."""
    (only,) = echo(f'{{"type":"subscribe","subscription_type":"stock","targets":[{target}]}}')
    text = f'{{"targets":["A", {target} ,\n"B",{target}],"x":1,"type":"subscribe",'
    several = echo(text + '"subscription_type":"stock"}')
    for echoed in (only, *several):
        assert json.loads(echoed, parse_float=str, parse_int=str) == json.loads(
            target, parse_float=str, parse_int=str
        )
    assert len(several) == 2


def test_odd_targets_are_bounded() -> None:
    """Deeply nested targets, and those in a message of too many parts, are returned in part."""
    deep = "[" * 65 + "]" * 65
    request = '{"type":"subscribe","subscription_type":"stock","targets":[%s]%s}'
    assert echo(request % (deep, "")) == [json.dumps(deep[:80])]
    members = "".join(f',"m{n}":1' for n in range(100))
    assert echo(request % ("[1]", members)) == ['"[1]"']
    many = echo(request % (",".join(["[1]"] * 2000), ""))
    assert (many[0], many[-1], len(many)) == ("[1]", '"[1]"', 2000)


def test_what_nobody_uses_may_be_any_json() -> None:
    """A lone surrogate or a number without bounds in another member does not spoil a request."""
    for odd in ODD_TARGETS:
        assert decode_client(f'{{"type":"ping","x":{odd}}}') == messages.Ping()


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


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"subscribe","subscription_type":"stock","targets":[1.5],"x":%s}',
        '{"type":"subscribe","subscription_type":"stock","targets":[%s]}',
        '{"type":"ping","request_id":99999999999999999999999,"x":%s}',
    ],
)
def test_a_message_is_read_or_refused_however_deep_it_is(message: str) -> None:
    """The parser for usual messages reads more levels than the one for exact texts."""
    for depth in range(900, 1100, 5):
        with contextlib.suppress(ProtocolError):
            decode_client(message % ("[" * depth + "]" * depth))


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
    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}Z", text)
    assert datetime.fromisoformat(text) >= before - timedelta(milliseconds=1)
