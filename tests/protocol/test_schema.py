"""The JSON Schema and the AsyncAPI document say what the codec does.

Covers streamer.protocol.endpoint.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.generate import REFERENCE, references
from streamer.protocol import messages, schema
from streamer.protocol.codec import decode_client, encode, encode_request
from streamer.protocol.errors import ErrorCode, ProtocolError
from streamer.protocol.messages import GapReason, Position, PriceLevel, RejectedTarget
from streamer.protocol.publications import decode_publication
from streamer.protocol.topics import Kind, SubscriptionType

NOON = "2024-08-09T12:00:00Z"
AT = Position("e", 5)
STOCK = SubscriptionType.STOCK

DOCUMENT = json.loads(json.dumps(schema.json_schema()))

CLIENT_MESSAGES: list[messages.ClientMessage] = [
    messages.Subscribe(STOCK, ["A"]),
    messages.Subscribe(STOCK, [], [Kind.PRICE], max_rate=0.5, since={"A": AT}, request_id=7),
    messages.Subscribe(STOCK, ["A"], delta=True, depth=10),
    messages.Resync(STOCK, ["A"], request_id=8),
    messages.Unsubscribe(SubscriptionType.MARKET, ["KOSPI"], request_id="r"),
    messages.Ping(),
    messages.SetOptions(5000, "r"),
    messages.Authenticate("t"),
    messages.RefreshToken("t"),
    messages.Reconnect("s", {"stock:A": AT}),
]
SERVER_MESSAGES: list[messages.ServerMessage] = [
    messages.Connected("s", 1, 25.0, {"max_subscriptions": 500}),
    messages.Connected("s", 1, 25.0, {}, "42", 900, {"user:42": AT}),
    messages.Subscribed(
        STOCK, ["A"], [RejectedTarget("*", ErrorCode.INVALID_TARGET, "no")], {"A": AT}, 7
    ),
    messages.Unsubscribed(STOCK, ["A"], [], request_id="r"),
    messages.Unsubscribed(STOCK, ["A"], [], messages.EndReason.FORBIDDEN),
    messages.Resynced(STOCK, ["A"], [], 8),
    messages.Authenticated("42", 900, {"user:42": AT}, "r"),
    messages.TokenExpiring(90),
    messages.Pong("r"),
    messages.ConnectionOptions(5000, "r"),
    messages.TokenRefreshed("t", 900),
    messages.Reconnected("s", {STOCK: ["A"]}, 3, recovered=True, positions={"stock:A": AT}),
    messages.Reconnected(
        "s",
        {},
        0,
        recovered=False,
        rejected={STOCK: [RejectedTarget("A", ErrorCode.FORBIDDEN, "no")]},
    ),
    messages.Error(ErrorCode.INVALID_JSON, "no", {"errors": []}),
    messages.Gap(STOCK, "A", GapReason.HISTORY_EXPIRED, "e", 5),
    messages.ServerShutdown(500),
    messages.Disconnected("moved", reconnect=True, retry_after_ms=500),
    messages.Closed(4008, "too slow"),
    messages.PriceUpdate("A", 1, 0, 0.5, 3, sequence=1, previous=0),
    messages.OrderbookUpdate("A", [PriceLevel(1, 2.5)], [], sequence=1, snapshot=True),
    messages.PriceDelta("A", 1.5, sequence=3, previous=1),
    messages.OrderbookDelta("A", [PriceLevel(1, 0)], [], 0, sequence=2),
    messages.MarketStatus("KOSPI", messages.MarketPhase.PRE_MARKET, sequence=0),
    messages.Alert("a", "A", "above", "m", {"x": [1]}, sequence=1),
    messages.Notification(1, "t", "m", "news", messages.Priority.URGENT, sequence=2),
    messages.Batch([messages.PriceUpdate("A", 1, 0, 0, 0, NOON, 1)], 1),
]


VALIDATORS = {
    name: jsonschema.Draft202012Validator(DOCUMENT | {"oneOf": [{"$ref": f"#/$defs/{name}"}]})
    for name in DOCUMENT["$defs"]
}


def is_valid(document: object, definition: str) -> bool:
    """Whether the schema of this name, as published, takes a document."""
    return VALIDATORS[definition].is_valid(document)


def test_the_schema_is_one() -> None:
    """The document is JSON Schema 2020-12, and names every message there is."""
    jsonschema.Draft202012Validator.check_schema(DOCUMENT)
    models = {*messages.CLIENT_MESSAGES, *messages.SERVER_MESSAGES}
    assert {model.__name__ for model in models} <= set(DOCUMENT["$defs"])
    assert {type(message) for message in (*CLIENT_MESSAGES, *SERVER_MESSAGES)} == models


@pytest.mark.parametrize("message", CLIENT_MESSAGES, ids=lambda message: str(message.type))
def test_what_a_client_sends_fits(message: messages.ClientMessage) -> None:
    """Every request that we encode fits the schema, as one of the client's messages alone."""
    document = json.loads(encode_request(message))
    assert is_valid(document, type(message).__name__)
    assert is_valid(document, "ClientMessage")
    assert not is_valid(document, "ServerMessage")


@pytest.mark.parametrize("message", SERVER_MESSAGES, ids=lambda message: str(message.type))
def test_what_the_server_sends_fits(message: messages.ServerMessage) -> None:
    """Every message that we encode fits the schema, as one of the server's messages alone."""
    document = json.loads(encode(message, NOON))
    assert is_valid(document, type(message).__name__)
    assert is_valid(document, "ServerMessage")
    if not isinstance(message, messages.ConnectionOptions):  # both sides say `options`
        assert not is_valid(document, "ClientMessage")
    for name in ("type", "timestamp"):
        assert not is_valid({k: v for k, v in document.items() if k != name}, "ServerMessage")


def test_what_a_producer_wrote_fits_as_it_is_forwarded() -> None:
    """Null where a producer may write it, and members of its own, are within the contract."""
    level = {"price": 1, "quantity": 1, "orders": None}
    raw = orjson.dumps({"stock_code": "A", "bids": [level], "asks": [], "venue": "X"})
    forwarded = orjson.loads(decode_publication(Kind.ORDERBOOK, "A", raw).text)
    assert is_valid(forwarded | {"sequence": 1}, "OrderbookUpdate")
    assert not is_valid(forwarded, "OrderbookUpdate")


values = st.sampled_from(
    [
        *(
            None,
            True,
            0,
            -1,
            1,
            0.5,
            1000,
            10**9 + 1,
            2**53 - 1,
            2**53,
            "",
            "A",
            "x" * 64,
            "x" * 65,
        ),
        *(
            "stock",
            "market",
            "all",
            "latest",
            "price",
            [],
            ["A"],
            ["price"],
            ["status"],
            ["price", 1],
        ),
        *({}, {"A": {"epoch": "e", "sequence": 0}}, {"A": {"epoch": "e" * 65, "sequence": 0}}),
        *(
            {"A": {"epoch": "e", "sequence": -1}},
            {"A": {"epoch": "e", "sequence": 2**53}},
            {"A": 1},
        ),
    ]
)


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        *((value, True) for value in (None, 0, 0.0, 1000, 1e9)),
        *((value, False) for value in (-1, 1, 999, 1e9 + 1, False, "1000")),
    ],
)
@pytest.mark.parametrize(
    "message",
    [
        {"type": "options"},
        {"type": "subscribe", "subscription_type": "stock", "targets": ["A"]},
    ],
    ids=["options", "subscribe"],
)
def test_the_bounds_of_max_bandwidth_are_in_the_schema(
    message: dict[str, Any], value: object, *, allowed: bool
) -> None:
    """It is nothing, 0, or within its bounds."""
    document = message | {"max_bandwidth": value}
    assert is_valid(document, "ClientMessage") == allowed
    if allowed:
        decode_client(json.dumps(document))
    else:
        with pytest.raises(ProtocolError):
            decode_client(json.dumps(document))


@given(st.data())
def test_the_schema_takes_what_the_codec_takes(data: st.DataObject) -> None:
    """A request with any field of another value fits the schema exactly when it is carried out."""
    message = data.draw(st.sampled_from(CLIENT_MESSAGES))
    document: dict[str, Any] = json.loads(encode_request(message))
    properties = DOCUMENT["$defs"][type(message).__name__]["properties"]
    names = st.sampled_from(sorted(set(properties) - {"type"}))
    document |= data.draw(st.dictionaries(names, values, max_size=2))
    for name in data.draw(st.lists(names, max_size=1)):
        document.pop(name, None)
    try:
        decode_client(json.dumps(document))
        taken = True
    except ProtocolError:
        taken = False
    # Targets are judged one by one after the request is taken; the schema speaks of good ones.
    if document.get("targets") != ["price", 1]:
        assert is_valid(document, "ClientMessage") == taken


def test_every_request_has_its_answer() -> None:
    """The AsyncAPI document names for each request its answer and `error`, and sends the rest."""
    document = schema.async_api()
    operations = document["operations"]
    assert set(operations) == {m.type for m in messages.CLIENT_MESSAGES} | {"events"}
    sent = {
        message["$ref"].rpartition("/")[2]
        for operation in operations.values()
        for message in (operation.get("reply") or operation)["messages"]
    }
    assert sent == {m.type for m in messages.SERVER_MESSAGES}


def test_every_reference_leads_somewhere() -> None:
    """No $ref of either document is broken."""

    def references_of(node: object) -> set[str]:
        children = list(node.values()) if isinstance(node, dict) else node
        if not isinstance(children, list):
            return set()
        own = {node["$ref"]} if isinstance(node, dict) and "$ref" in node else set()
        return own.union(*map(references_of, children))

    for document in (DOCUMENT, schema.async_api()):
        for reference in references_of(document):
            node: Any = document
            for step in reference.removeprefix("#/").split("/"):
                node = node[step]


@pytest.mark.parametrize("name", references())
def test_the_published_reference_is_up_to_date(name: str) -> None:
    """The files in docs/reference are equal to those that `python -m docs.generate` writes."""
    published = Path(REFERENCE, name).read_text(encoding="utf-8")
    assert published == references()[name], "run: python -m docs.generate"
