"""Queries over HTTP: what they mean, and a clear error for whatever has no meaning.

Covers streamer.edge.http_request.
"""

from __future__ import annotations

import itertools
from urllib.parse import urlencode

import pytest

from streamer.edge.http_answers import HttpError
from streamer.edge.http_query import (
    MAX_HISTORY_MESSAGES,
    HistoryQuery,
    StreamQuery,
    read_history_query,
    read_snapshot_query,
    read_stream_query,
)
from streamer.edge.http_request import HttpRequest, read_http_request
from streamer.hub.renditions import Detail
from streamer.protocol.messages import Mode, Position
from streamer.protocol.topics import Kind, Topic
from streamer.wire.cursor import OWED_GAP, encode_cursor

STOCK, MARKET = map(Topic.parse, ("stock:005930", "market:KOSPI"))
USER = Topic.parse("user:42")
CURSOR = encode_cursor([(STOCK, "e", 5)])


def request(query: str, headers: dict[bytes, bytes] | None = None) -> HttpRequest:
    """A request with this query."""
    return read_http_request(b"GET", "/v1/stream", query, headers or {}, cookie="token")


def stream_query(query: str, headers: dict[bytes, bytes] | None = None) -> StreamQuery:
    """The query of a stream."""
    return read_stream_query(request(query, headers), max_topics=3, max_book_levels=50)


def test_a_cursor_may_look_like_a_token() -> None:
    """A token that somebody sends in a header of another meaning is hidden; this is no other."""
    topics = (Topic.parse(f"stock:{number}") for number in itertools.count())
    topic, cursor = next(
        (topic, cursor)
        for topic in topics
        if "eyJ" in (cursor := encode_cursor([(topic, "e.f", 5)]))[1:-6]
    )
    headers = {b"last-event-id": cursor.encode()}
    (want,) = stream_query(f"topics={topic}", headers).wants([topic], None)
    assert want.since == Position("e.f", 5)


def test_a_list_of_topics_is_split_at_commas_and_each_at_its_first_colon() -> None:
    """Repeated parameters add up, each topic once; a target with a comma is given as `topic`."""
    query = stream_query(
        "topics=stock:BTC%2FUSDT:USDT,market:KOSPI&topic=stock:a,b&topics=market:KOSPI"
    )
    assert list(map(str, query.topics)) == ["stock:BTC/USDT:USDT", "market:KOSPI", "stock:a,b"]
    encoded = urlencode({"topics": "stock:005930,market:KOSPI"})
    assert stream_query(encoded).topics == (STOCK, MARKET)
    assert str(stream_query("topics=stock:%EC%82%BC%EC%84%B1").topics[0]) == "stock:삼성"


def test_the_options_are_those_of_subscribe() -> None:
    """Kinds hold for the topics that carry them."""
    query = stream_query("topics=stock:005930&delta=true&depth=50")
    assert query.detail == Detail(delta=True, depth=50)
    query = stream_query("topics=stock:005930&mode=latest&kinds=price&max_rate=4")
    assert (query.mode, query.kinds, query.interval_seconds) == (
        Mode.LATEST,
        frozenset({Kind.PRICE}),
        0.25,
    )
    query = stream_query("topics=stock:005930,market:KOSPI&kinds=price,status&mode=all")
    wanted = {want.topic: want.options for want in query.wants(query.topics, USER)}
    assert wanted[STOCK].kinds == {Kind.PRICE}
    assert wanted[MARKET].kinds == {Kind.STATUS}
    assert wanted[USER].kinds == frozenset(), "all of them"
    assert {one.mode for one in wanted.values()} == {Mode.ALL}


def test_a_stream_resumes_at_its_cursor() -> None:
    """The header of a browser is newer than the query, which it repeats."""
    newer = encode_cursor([(STOCK, "e", 7), (MARKET, None, 0)])
    both = f"topics=stock:005930,market:KOSPI&last_event_id={CURSOR}"
    for headers, expected in (
        ({}, {STOCK: Position("e", 5), MARKET: None}),
        ({b"last-event-id": newer.encode()}, {STOCK: Position("e", 7), MARKET: OWED_GAP}),
        ({b"last-event-id": b""}, {STOCK: Position("e", 5), MARKET: None}),
    ):
        query = stream_query(both, headers)
        assert {want.topic: want.since for want in query.wants(query.topics, None)} == expected


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "topics are missing"),
        ("topics=", "invalid"),
        ("topics=stock:A,", "invalid"),
        ("topics=stock:A,B", "invalid"),
        ("topics=bond:A", "invalid"),
        ("topics=stock", "invalid"),
        ("topics=stock:*", "invalid"),
        ("topics=stock:A%00", "invalid"),
        ("topics=stock:A,stock:B,stock:C,stock:D", "4 topics"),
        ("topics=stock:A&Topics=stock:B", "unknown"),
        ("topics=stock:A&session_id=1", "unknown"),
        ("topics=stock:A&delta=yes", "delta"),
        ("topics=stock:A&depth=0", "depth"),
        ("topics=stock:A&depth=51", "depth"),
        ("topics=stock:A&depth=", "depth"),
        ("topics=stock:A&mode=fast", "mode"),
        ("topics=stock:A&mode=all&mode=all", "twice"),
        ("topics=stock:A&kinds=", "kinds"),
        ("topics=stock:A&kinds=trades", "kinds"),
        ("topics=stock:A,market:M&kinds=price", "leaves nothing of market:M"),
        ("topics=stock:A&max_rate=0", "max_rate"),
        ("topics=stock:A&max_rate=nan", "max_rate"),
        ("topics=stock:A&max_rate=fast", "max_rate"),
        ("topics=stock:A&max_rate=5&mode=all", "mode all forbids"),
        ("topics=stock:A&last_event_id=17", "last_event_id"),
    ],
)
def test_what_has_no_meaning_is_400_with_a_reason(query: str, reason: str) -> None:
    """An option that is ignored in silence would be found by a trader."""
    with pytest.raises(HttpError, match=reason) as refused:
        stream_query(query)
    assert refused.value.status == 400


def test_the_invalid_topics_are_listed() -> None:
    """Each with the reason."""
    with pytest.raises(HttpError) as refused:
        stream_query("topics=stock:A,stock:*,bond:B")
    assert refused.value.details is not None
    rejected = refused.value.details["rejected"]
    assert [(one["topic"], one["code"]) for one in rejected] == [
        ("stock:*", "INVALID_TARGET"),
        ("bond:B", "INVALID_TARGET"),
    ]


def test_a_history_is_of_one_topic_from_a_position_on() -> None:
    """With a limit, or as many as there may be."""
    read = read_history_query(request("topic=stock:005930&epoch=a-1&sequence=7"))
    assert read == HistoryQuery(STOCK, Position("a-1", 7), MAX_HISTORY_MESSAGES)
    assert read_history_query(request("topic=stock:A&epoch=&sequence=0&limit=1")).limit == 1
    for query in (
        "epoch=e&sequence=1",
        "topic=stock:A&sequence=1",
        "topic=stock:A&epoch=e",
        "topic=stock:A&topic=stock:B&epoch=e&sequence=1",
        "topic=stock:A&epoch=e&sequence=-1",
        "topic=stock:A&epoch=e&sequence=1.0",
        "topic=stock:A&epoch=e&sequence=9999999999999999",
        "topic=stock:A&epoch=e&sequence=%D9%A1",
        "topic=stock:A&epoch=e&sequence=1&limit=0",
        f"topic=stock:A&epoch=e&sequence=1&limit={MAX_HISTORY_MESSAGES + 1}",
        "topic=stock:A&sequence=1&epoch=" + "e" * 65,
    ):
        with pytest.raises(HttpError):
            read_history_query(request(query))


def test_a_snapshot_has_topics_and_no_options() -> None:
    """Neither modes nor rates mean anything for it."""
    query = request("topics=stock:005930,market:KOSPI")
    assert read_snapshot_query(query, max_topics=2) == (STOCK, MARKET)
    with pytest.raises(HttpError, match="unknown"):
        read_snapshot_query(request("topics=stock:A&mode=all"), max_topics=2)


def test_the_token_is_no_parameter() -> None:
    """It is taken from the query, among other places, and appears nowhere else."""
    with_token = request("topics=stock:A&token=eyJh.eyJz.c2ln")
    assert with_token.token == "eyJh.eyJz.c2ln"
    assert with_token.parameters == (("topics", "stock:A"),)
    assert "eyJh" not in repr(with_token)
    assert request("topics=stock:A", {b"cookie": b"token=abc"}).token == "abc"
    assert request("topics=stock:A", {b"authorization": b"Bearer xyz"}).token == "xyz"


@pytest.mark.parametrize("query", ["topics=%FF", "&".join(["topic=stock:A"] * 201)])
def test_a_query_that_cannot_be_read_is_refused(query: str) -> None:
    """One that is not UTF-8, and one that has too many parameters."""
    refused = request(query)
    assert refused.query_problem is not None
    assert refused.parameters == ()
