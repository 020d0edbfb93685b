"""The Verifier, rule by rule, and against a model of a server.

Covers streamer.client.account.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamer.client.account import Account, Fault, Violation
from streamer.client.decode import Message, decode_server
from streamer.client.messages import Data, Error, Gap, MarketStatus, PriceUpdate, Unreadable
from streamer.client.verify import VIOLATIONS_KEPT, Verifier
from streamer.protocol.errors import ErrorCode
from streamer.protocol.messages import (
    GapReason,
    MarketPhase,
    Ping,
    Pong,
    Position,
    Reconnect,
    Reconnected,
    Subscribe,
    Subscribed,
    Unsubscribed,
)
from streamer.protocol.topics import Kind, SubscriptionType, Topic

STOCK = Topic.parse("stock:005930")
OTHER_STOCK = Topic.parse("stock:000660")
MARKET = Topic.parse("market:KOSPI")
SECTOR = Topic.parse("sector:chips")
WATCHLIST = Topic.parse("watchlist:7")
USER = Topic.parse("user:u1")


def price_update(
    sequence: int,
    previous: int | None = None,
    *,
    of: Topic = STOCK,
    snapshot: bool = False,
    code: str = "005930",
    named: bool = False,
) -> PriceUpdate:
    """Make a price of a topic; `named`: with the topic's names in it."""
    names = {"subscription_type": str(of.subscription_type), "target": of.target}
    return PriceUpdate(
        timestamp="2024-08-09T00:00:00Z",
        stock_code=of.target if of.subscription_type is SubscriptionType.STOCK else code,
        price=1,
        change=0,
        change_percent=0,
        volume=1,
        sequence=sequence,
        previous=previous,
        snapshot=snapshot,
        extra=names if named else {},
    )


def status(sequence: int, previous: int | None = None, *, snapshot: bool = False) -> MarketStatus:
    """Make a status of the market."""
    return MarketStatus(
        timestamp="2024-08-09T00:00:00Z",
        market=MARKET.target,
        status=MarketPhase.OPEN,
        sequence=sequence,
        previous=previous,
        snapshot=snapshot,
    )


def gap(sequence: int, epoch: str = "a", topic: Topic = STOCK) -> Gap:
    """Make a gap after which the stream continues from this position."""
    return Gap(topic.subscription_type, topic.target, GapReason.SOURCE_RECONNECTED, epoch, sequence)


def subscribed(
    sequence: int, epoch: str = "a", topic: Topic = STOCK, request_id: int | None = None
) -> Subscribed:
    """Return the answer to a subscription."""
    positions = {topic.target: Position(epoch, sequence)}
    return Subscribed(topic.subscription_type, [topic.target], [], positions, request_id)


def subscribe(
    topic: Topic = STOCK, since: Position | None = None, kinds: list[Kind] | None = None
) -> Subscribe:
    """Make a subscription, from a position if one is given."""
    return Subscribe(
        topic.subscription_type,
        [topic.target],
        kinds=kinds,
        since=None if since is None else {topic.target: since},
    )


def account(*conversation: Message | Subscribe | Reconnect | None) -> Account:
    """Return the account of a conversation; None: the connection ends."""
    verifier = Verifier()
    show(verifier, *conversation)
    return verifier.account()


def show(verifier: Verifier, *conversation: Message | Subscribe | Reconnect | None) -> None:
    """Let the verifier see a conversation."""
    for message in conversation:
        if message is None:
            verifier.disconnected()
        elif isinstance(message, Subscribe | Reconnect):
            verifier.sent(message)
        else:
            verifier.receive(message)


def test_a_stream_in_order_adds_up() -> None:
    """Messages that follow each other, merged ones and snapshots are counted, and nothing else."""
    result = account(
        subscribed(5),
        price_update(5, snapshot=True),
        price_update(6),
        price_update(7),
        price_update(10, 7),
        price_update(11),
    )
    assert (result.received, result.snapshots, result.merged) == (5, 1, 2)
    assert (result.violations, result.gaps, result.outstanding) == (0, {}, 0)


@pytest.mark.parametrize(
    ("conversation", "fault", "detail"),
    [
        ([subscribed(5), price_update(7)], Fault.HOLE, "6 missing before 7"),
        ([subscribed(5), price_update(9, 7)], Fault.HOLE, "6 to 7 missing before 9"),
        ([subscribed(5), price_update(6), price_update(6)], Fault.REPEAT, "6 comes after 6"),
        (
            [subscribed(5), price_update(6), price_update(7), price_update(6)],
            Fault.REPEAT,
            "6 comes after 7",
        ),
        ([subscribed(5), price_update(5)], Fault.REPEAT, "5 comes after 5"),
        ([subscribed(5), price_update(8, 6)], Fault.HOLE, "6 missing before 8"),
        ([subscribed(5), price_update(8, 4)], Fault.OVERLAP, "8 follows 4, and 5 is held"),
        (
            [subscribed(5), price_update(6, snapshot=True)],
            Fault.SNAPSHOT,
            "6, and the stream is at 5",
        ),
        ([subscribed(5), gap(4)], Fault.GAP, "it resumes at 4, and 5 is held"),
        ([subscribed(5), gap(0, "b"), price_update(2)], Fault.HOLE, "1 missing before 2"),
        ([subscribed(5), gap(9), price_update(9)], Fault.REPEAT, "9 comes after 9"),
        ([price_update(1)], Fault.UNSOLICITED, "price_update 1 of 005930"),
        ([gap(1)], Fault.UNSOLICITED, "a gap (source_reconnected)"),
        ([subscribed(5), None, price_update(6)], Fault.UNSOLICITED, "price_update 6 of 005930"),
        ([subscribed(5), subscribed(7)], Fault.HOLE, "subscribed again at 7, and 5 is held"),
    ],
)
def test_each_breach_is_named(
    conversation: list[Message | None], fault: Fault, detail: str
) -> None:
    """One violation is counted, with the numbers that show it."""
    result = account(*conversation)
    assert result.faults == {fault: 1}
    assert result.first_violations == (Violation(fault, STOCK, detail),)
    assert str(result.first_violations[0]) == f"{fault}: {STOCK}: {detail}"


def test_a_message_that_comes_late_is_out_of_order_rather_than_a_repeat() -> None:
    """It was missing before; a message that had been received would be a repeat."""
    result = account(subscribed(5), price_update(7), price_update(6), price_update(8))
    assert result.faults == {Fault.HOLE: 1, Fault.OUT_OF_ORDER: 1}


def test_after_a_breach_the_stream_goes_on_from_what_came() -> None:
    """One lost message is one violation, not one for each message after it."""
    assert account(subscribed(5), price_update(7), price_update(8), price_update(9)).violations == 1


def test_a_gap_is_the_way_over_a_hole_and_into_another_epoch() -> None:
    """The stream continues from its position; a snapshot is not ahead of that."""
    result = account(
        subscribed(5),
        gap(9),
        price_update(10),
        gap(3, "b"),
        price_update(3, snapshot=True),
        price_update(4),
    )
    assert result.violations == 0
    assert result.gaps == {GapReason.SOURCE_RECONNECTED: 2}


def test_subscribing_without_since_takes_the_stream_as_it_stands() -> None:
    """Without `since`, missed messages are not promised."""
    assert (
        account(subscribed(5), price_update(6), None, subscribed(20), price_update(21)).violations
        == 0
    )


HELD = Position("a", 6)


def test_what_was_missed_follows_a_subscription_since() -> None:
    """The stream continues from `since`; the position of the answer is its present end."""
    result = account(
        *(subscribed(5), price_update(6), None, subscribe(since=HELD)),
        *(
            subscribed(9),
            price_update(9, snapshot=True),
            price_update(7),
            price_update(9, 7),
            price_update(10),
        ),
    )
    assert (result.violations, result.merged, result.outstanding) == (0, 1, 0)


def test_a_recovery_that_is_not_over_is_told() -> None:
    """It is no violation yet, but the account shows it as outstanding."""
    result = account(subscribe(since=HELD), subscribed(9), price_update(7))
    assert (result.violations, result.outstanding) == (0, 1)
    assert "topics not yet recovered 1" in str(result)


@pytest.mark.parametrize(
    ("answer", "following", "fault"),
    [
        (subscribed(9), price_update(10), Fault.HOLE),
        (subscribed(9), price_update(6), Fault.REPEAT),
        (subscribed(1, "b"), price_update(2), Fault.EPOCH),
        (subscribed(4), price_update(5), Fault.EPOCH),
    ],
)
def test_a_recovery_that_leaves_something_out_is_a_breach(
    answer: Subscribed, following: Message, fault: Fault
) -> None:
    """A hole, a repeat, a new epoch and an earlier position without a gap are violations."""
    result = account(subscribe(since=HELD), answer, following)
    assert result.faults == {fault: 1}


def test_a_recovery_that_is_not_possible_says_so() -> None:
    """A gap leads to the end of the stream."""
    result = account(
        *(subscribe(since=HELD), subscribed(3, "b"), gap(3, "b")),
        *(price_update(2, snapshot=True), price_update(4)),
    )
    assert (result.violations, result.outstanding) == (0, 0)


def test_after_an_unannounced_epoch_the_stream_goes_on_in_it() -> None:
    """One violation is counted, not one for each message of the new epoch."""
    conversation = (subscribe(since=HELD), subscribed(1, "b"), price_update(2), price_update(3))
    verifier = Verifier()
    show(verifier, *conversation)
    assert verifier.account().faults == {Fault.EPOCH: 1}
    assert verifier.position(STOCK) == Position("b", 3)


def test_a_stream_may_go_on_under_the_epoch_of_its_producers() -> None:
    """A new epoch is no hole where all missed messages follow; it is then the stream's epoch."""
    verifier = Verifier()
    show(
        verifier,
        subscribe(since=HELD),
        subscribed(8, "b"),
        price_update(7),
        price_update(8),
        price_update(9),
    )
    assert verifier.account().violations == 0
    assert verifier.position(STOCK) == Position("b", 9)


def reconnected(sequence: int | None, epoch: str = "a") -> Reconnected:
    """Return the answer to `reconnect`."""
    positions = {} if sequence is None else {str(STOCK): Position(epoch, sequence)}
    return Reconnected("s2", {STOCK.subscription_type: [STOCK.target]}, 2, True, positions)


@pytest.mark.parametrize("stands", [8, None])
def test_what_was_missed_follows_a_reconnect(stands: int | None) -> None:
    """They follow as after `since`; the server need not announce the end of the stream."""
    result = account(
        *(subscribed(6), None, Reconnect("s1", {str(STOCK): HELD}), reconnected(stands)),
        *(price_update(7), price_update(8), price_update(9)),
    )
    assert (result.violations, result.outstanding) == (0, 0)


def test_a_restored_stream_without_a_position_held_begins_where_it_stands() -> None:
    """This happens where the answer to the subscription was lost."""
    assert account(Reconnect("s1", {}), reconnected(8), price_update(9)).violations == 0


def test_kinds_that_were_not_asked_for_are_no_hole() -> None:
    """`previous` names the last message received; a recovery may end with other kinds."""
    first = subscribe(kinds=[Kind.PRICE])
    again = subscribe(kinds=[Kind.PRICE], since=Position("a", 8))
    result = account(
        first, subscribed(5), price_update(8, 5), None, again, subscribed(12), price_update(13)
    )
    assert (result.violations, result.merged, result.outstanding) == (0, 2, 0)
    assert account(again, subscribed(12), price_update(11, 10)).faults == {Fault.HOLE: 1}


def test_nothing_comes_after_unsubscribed() -> None:
    """A later message of a stock or a sector is a violation."""
    for topic in (STOCK, SECTOR):
        unsubscribed = Unsubscribed(topic.subscription_type, [topic.target], [])
        result = account(subscribed(5, topic=topic), unsubscribed, price_update(6, of=topic))
        assert result.faults == {Fault.UNSOLICITED: 1}


def test_an_answer_belongs_to_the_request_whose_id_it_has() -> None:
    """A refused request is forgotten: later answers are not taken for its own."""
    first = attrs.evolve(subscribe(since=Position("a", 1)), request_id=1)
    second = attrs.evolve(subscribe(since=HELD), request_id=2)
    refusal = Error(ErrorCode.INVALID_MESSAGE, "no", request_id=1)
    result = account(first, second, refusal, subscribed(6, request_id=2), price_update(7))
    assert result.violations == 0
    verifier = Verifier()
    verifier.sent(Ping("p"))
    assert verifier.receive(Pong("p")) is None
    assert not verifier._requests


def test_sector_and_watchlist_messages_find_their_stream() -> None:
    """The topic that a message names decides, otherwise the stream whose next message it is."""
    begin = (subscribed(5), subscribed(50, topic=SECTOR), subscribed(70, topic=WATCHLIST))
    verifier = Verifier()
    show(verifier, *begin)
    for message, topic in [
        (price_update(70, of=WATCHLIST, snapshot=True, named=True), WATCHLIST),
        (price_update(51, of=SECTOR), SECTOR),
        (price_update(6), STOCK),
        (price_update(71, of=WATCHLIST), WATCHLIST),
        (price_update(52, of=SECTOR, named=True), SECTOR),
        (price_update(55, 52, of=SECTOR, code="any stock at all"), SECTOR),
    ]:
        assert verifier.receive(message) == topic
    assert verifier.account().violations == 0
    assert verifier.receive(price_update(99, of=SECTOR, named=True)) == SECTOR
    assert verifier.account().faults == {Fault.HOLE: 1}


def test_an_unreadable_message_moves_its_stream_only_if_it_is_data() -> None:
    """A message to a user names no stock; a gap has a sequence, but is no publication."""
    user = Topic.parse("user:u1")
    unreadable = Unreadable(problem="?", text="{}", type="notification", sequence=6)
    verifier = Verifier()
    show(verifier, subscribed(5, topic=user), unreadable)
    assert verifier.position(user) == Position("a", 6)
    show(verifier, attrs.evolve(unreadable, type="gap", sequence=9))
    assert verifier.position(user) == Position("a", 6)
    assert (verifier.account().unreadable, verifier.account().violations) == (2, 0)


def test_a_message_that_no_topic_is_about_is_unsolicited() -> None:
    """The stock is no valid target, and there is no subscription to a sector."""
    (violation,) = account(price_update(1, of=SECTOR, code="no  target")).first_violations
    assert str(violation) == "not subscribed: no topic: price_update 1 of no  target"


def test_messages_to_a_user_are_held_to_the_contract() -> None:
    """Alerts and notifications share the stream of the user, which the server names in them."""
    verifier = Verifier()
    show(verifier, subscribed(4, topic=USER), subscribed(4, topic=SECTOR))
    alert = personal("alert", '"alert_id":1,"stock_code":"1","alert_type":"a"')
    notification = personal(
        "notification",
        '"notification_id":"n","title":"t","notification_type":"a","priority":"LOW"',
    )
    assert verifier.receive(alert(5)) == USER
    assert verifier.receive(notification(6)) == USER
    assert verifier.receive(price_update(5, of=SECTOR)) == SECTOR
    assert verifier.account().violations == 0
    assert verifier.receive(alert(8)) == USER
    assert verifier.account().faults == {Fault.HOLE: 1}


def personal(type_: str, members: str) -> Callable[[int], Data]:
    """Makes messages to the user of `USER`."""

    def make(sequence: int) -> Data:
        (message,) = decode_server(
            f'{{"type":"{type_}","timestamp":"t","message":"m",{members},'
            f'"subscription_type":"user","target":"{USER.target}","sequence":{sequence}}}'
        )
        assert isinstance(message, Data)
        return message

    return make


def test_a_message_to_a_user_without_such_a_topic_is_unsolicited() -> None:
    """A subscription to a sector does not bring it."""
    alert = personal("alert", '"alert_id":1,"stock_code":"1","alert_type":"a"')
    (violation,) = account(subscribed(0, topic=SECTOR), alert(1)).first_violations
    assert str(violation) == "not subscribed: no topic: alert 1 of 1"


def test_the_account_reads_well_and_stays_small() -> None:
    """The first violations are listed, the others counted; all are reported."""
    told: list[Violation] = []
    verifier = Verifier(told.append)
    show(verifier, subscribed(0), gap(0), price_update(3, 0))
    for _ in range(VIOLATIONS_KEPT + 2):
        verifier.receive(price_update(1))
    lines = str(verifier.account()).splitlines()
    assert lines[:4] == [
        "received 103 (0 snapshots)",
        "merged by policy 2",
        "gaps announced 1 (1 source_reconnected)",
        "violations 102",
    ]
    assert lines[4] == "  repeat: stock:005930: 1 comes after 3"
    assert lines[-1] == "  and 2 more"
    assert len(lines) == VIOLATIONS_KEPT + 5
    assert len(told) == VIOLATIONS_KEPT + 2


def test_a_position_is_known_once_it_was_told() -> None:
    """There is no position before the first answer."""
    verifier = Verifier()
    assert verifier.position(STOCK) is None
    verifier.receive(reconnected(None))
    assert verifier.position(STOCK) is None
    show(verifier, subscribed(5), price_update(6), None)
    assert verifier.position(STOCK) == HELD


# Against a model

Event = Message | Subscribe | None


class ModelStream:
    """One topic of a server that keeps the contract, as its client receives it."""

    def __init__(self, topic: Topic, make: Callable[..., Data]) -> None:
        self.topic = topic
        self._make = make
        self.epoch = 0
        self.sequence = 0
        self.told = 0
        """The last sequence sent to the client."""
        self.merged = 0
        self.gaps = 0
        self.delivered = 0

    @property
    def position(self) -> Position:
        """The end of the stream."""
        return Position(str(self.epoch), self.sequence)

    def deliver(self, *, merge: bool) -> Iterator[Event]:
        """Yield the messages that the client lacks, or only the newest."""
        for sequence in range(self.told + 1, self.sequence + 1):
            if not merge:
                yield self._message(sequence)
            elif sequence == self.sequence:
                previous = None if sequence == self.told + 1 else self.told
                self.merged += sequence - self.told - 1
                yield self._message(sequence, previous)
        self.told = self.sequence

    def _message(self, sequence: int, previous: int | None = None) -> Data:
        self.delivered += 1
        return self._make(sequence, previous)

    def snapshot(self) -> Iterator[Event]:
        """Yield the last known value, if there is one."""
        if self.sequence:
            self.delivered += 1
            yield self._make(self.sequence, snapshot=True)

    def lose(self, *, skipped: int, new_epoch: bool) -> Iterator[Event]:
        """Lose publications for good; yield the gap."""
        self.epoch += new_epoch
        self.sequence = skipped if new_epoch else self.sequence + skipped
        self.told = self.sequence
        self.gaps += 1
        yield gap(self.sequence, str(self.epoch), self.topic)

    def answer(self) -> Subscribed:
        """Return the answer to a subscription."""
        return subscribed(self.sequence, str(self.epoch), self.topic)


class Model:
    """A client's conversation with a server that keeps the contract."""

    def __init__(self) -> None:
        self.streams = [
            ModelStream(STOCK, price_update),
            ModelStream(MARKET, status),
            ModelStream(OTHER_STOCK, partial(price_update, of=OTHER_STOCK)),
        ]
        self.events: list[Event] = []
        for stream in self.streams:
            self.events += [subscribe(stream.topic), stream.answer()]

    def step(self, action: str, which: int, count: int) -> None:
        """Take a step; `count` is its size."""
        stream = self.streams[which]
        match action:
            case "publish":
                stream.sequence += count
                self.events += stream.deliver(merge=False)
            case "merge":
                stream.sequence += count
                self.events += stream.deliver(merge=True)
            case "gap":
                self.events += stream.lose(skipped=count, new_epoch=bool(count % 2))
            case "subscribe":
                self.events += [subscribe(stream.topic), stream.answer(), *stream.snapshot()]
            case _:
                self.events.append(None)
                for other in self.streams:
                    self._come_back(other, count if other is stream else 1, action)

    def _come_back(self, stream: ModelStream, missed: int, action: str) -> None:
        since = Position(str(stream.epoch), stream.told)
        if action == "expire":
            lost = list(stream.lose(skipped=missed, new_epoch=missed % 2 == 0))
            self.events += [subscribe(stream.topic, since), stream.answer(), *lost]
            self.events += stream.snapshot()
        else:
            stream.sequence += missed
            self.events += [subscribe(stream.topic, since), stream.answer(), *stream.snapshot()]
            self.events += stream.deliver(merge=action == "restore merged")


@st.composite
def conversations(draw: st.DrawFn) -> Model:
    """Draw a conversation about three topics."""
    model = Model()
    actions = ["publish", "merge", "gap", "subscribe", "restore", "restore merged", "expire"]
    step = st.tuples(st.sampled_from(actions), st.integers(0, 2), st.integers(0, 4))
    for action, which, count in draw(st.lists(step, max_size=30)):
        model.step(action, which, count)
    return model


@given(conversations())
def test_a_server_that_keeps_the_contract_has_no_violations(model: Model) -> None:
    """The account is the one of the model, for any order of steps."""
    result = account(*model.events)
    assert result.first_violations == ()
    assert result.outstanding == 0
    assert result.received == sum(stream.delivered for stream in model.streams)
    assert result.merged == sum(stream.merged for stream in model.streams)
    assert sum(result.gaps.values()) == sum(stream.gaps for stream in model.streams)


def topic_of(event: Event) -> Topic | None:
    """Return the topic whose stream an event moves."""
    match event:
        case Data(snapshot=False):
            return Verifier()._find_topic(event)
        case Gap():
            return Topic(event.subscription_type, event.target)
        case Subscribe():
            return Topic(event.subscription_type, event.targets[0])
    return None


def linked_pairs(events: list[Event]) -> list[tuple[int, int]]:
    """Return pairs of indices of a message and the message that follows it on its topic."""
    last: dict[Topic | None, int] = {}
    pairs = []
    for place, event in enumerate(events):
        topic = topic_of(event)
        if event is None:
            last.clear()
        elif topic is not None:
            if isinstance(event, Data) and topic in last:
                pairs.append((last[topic], place))
            last.pop(topic, None)
            if isinstance(event, Data):
                last[topic] = place
    return pairs


@given(conversations(), st.data())
def test_every_tampering_is_noticed(model: Model, data: Any) -> None:
    """A message that is dropped, repeated, or exchanged with its successor is a violation."""
    events = model.events
    pairs = linked_pairs(events)
    assume(pairs)
    first, second = data.draw(st.sampled_from(pairs))
    match data.draw(st.sampled_from(["drop", "repeat", "swap"])):
        case "drop":
            tampered = events[:first] + events[first + 1 :]
        case "repeat":
            tampered = [*events[: second + 1], events[first], *events[second + 1 :]]
        case _:
            tampered = list(events)
            tampered[first], tampered[second] = tampered[second], tampered[first]
    assert account(*tampered).violations > 0
