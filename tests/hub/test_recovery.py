"""Recoveries: what a client that names a position is promised, and that it is sent just that."""

from __future__ import annotations

import pytest

from streamer.hub.recovery import subscribe
from streamer.hub.sessions import (
    SessionRecord,
    decode_record,
    encode_session,
    record_session,
)
from streamer.hub.subscription import SubscriptionOptions, Want
from streamer.protocol.messages import GapReason, Mode, Position
from streamer.protocol.topics import Kind, Topic
from tests.hub.listener import Listener, listening
from tests.hub.test_history import STOCK, STOCKS, House

MESSAGE_BYTES = 1000


def sequences(client: Listener) -> list[tuple[int, int | None]]:
    """Sequence and `previous` of the messages received."""
    return [(message["sequence"], message.get("previous")) for message in client.heard()]


def filled(house: House, topic: Topic, count: int) -> None:
    """Publish messages that name their sequence, of about a kilobyte each."""
    stream = house.hub.stream(topic)
    for _ in range(count):
        text = b'{"type":"x","pad":"%b"}' % (b"x" * MESSAGE_BYTES)
        house.hub.publishing.publish(stream, Kind.PRICE, text)


def test_what_is_promised_is_held_while_the_history_goes_on() -> None:
    """A client that reads slowly gets each promised message, and then the newest: no gap."""
    house = House(history_length=300)
    filled(house, STOCK, 300)
    epoch = house.hub.stream(STOCK).epoch
    with listening(house.hub) as client:
        recovery = client.recover(STOCK, Position(epoch, 0))
        assert (recovery.missed_messages, recovery.recovered) == (300, True)
        assert client.outbox.backlog.replaying, "the socket has taken everything already"
        filled(house, STOCK, 300)  # the history has forgotten all of the promise
        received: list[tuple[int, int | None]] = []
        while len(received) < 600:
            received += sequences(client)
            house.hub.fanout.resume(client.outbox)
        assert received == [(sequence, None) for sequence in range(1, 601)]
        assert client.outbox.backlog.replay_bytes == 0


def test_a_session_that_is_cut_in_the_middle_of_a_restore_is_whole() -> None:
    """All its topics are in its record, those not replayed yet from where the client is."""
    house = House(history_length=300)
    since = {}
    for topic in STOCKS:
        filled(house, topic, 200)
        since[topic] = Position(house.hub.stream(topic).epoch, 0)
    with listening(house.hub) as client:
        wants = [Want(topic, SubscriptionOptions(Mode.ALL), at) for topic, at in since.items()]
        recovery = subscribe(house.hub, client.outbox, wants, max_replay_bytes=1 << 20)
        assert recovery.missed_messages == 600
        house.hub.fanout.start_replays(client.outbox)
        assert client.outbox.backlog.replaying
        record = record_session(client.outbox)
        assert {held.topic: held.confirmed for held in record.subscriptions} == since


def test_more_than_may_be_held_is_a_gap_and_not_a_promise() -> None:
    """The topics that fit are replayed, the others resume where their streams are."""
    house = House(history_length=300)
    since = {}
    for topic in STOCKS:
        filled(house, topic, 10)
        since[topic] = Position(house.hub.stream(topic).epoch, 0)
    with listening(house.hub) as client:
        wants = [Want(topic, SubscriptionOptions(Mode.ALL), at) for topic, at in since.items()]
        recovery = subscribe(
            house.hub, client.outbox, wants, max_replay_bytes=25 * (MESSAGE_BYTES + 50)
        )
        assert (recovery.missed_messages, recovery.recovered) == (20, False)
        house.hub.fanout.start_replays(client.outbox)
        *replayed, gap, last = client.heard()
        assert [message["sequence"] for message in replayed] == 2 * list(range(1, 11))
        assert (gap["type"], gap["target"], gap["sequence"]) == ("gap", "C", 10)
        assert gap["reason"] == GapReason.HISTORY_EXPIRED
        assert (last["sequence"], last["snapshot"]) == (10, True)


def test_a_client_ahead_of_the_server_never_goes_back() -> None:
    """It had 4 to 7 from another server: here they come later, and not to it."""
    house = House()
    stream = house.hub.stream(STOCK)
    epoch = "of the producers"
    house.hub.publishing.adopt(stream, Position(epoch, 0))
    filled(house, STOCK, 3)
    with listening(house.hub) as client, listening(house.hub) as other:
        other.subscribe(STOCK)
        recovery = client.recover(STOCK, Position(epoch, 7))
        (gap,) = client.heard()
        assert (gap["reason"], gap["epoch"]) == (GapReason.SOURCE_UNAVAILABLE, epoch)
        assert gap["sequence"] == 7
        assert recovery.positions == {STOCK: Position(epoch, 7)}
        assert not recovery.recovered
        filled(house, STOCK, 3)
        assert client.heard() == []
        filled(house, STOCK, 3)
        assert sequences(client) == [(8, None), (9, None)]
        assert [sequence for sequence, _ in sequences(other)] == [4, 5, 6, 7, 8, 9]


def test_an_epoch_that_this_server_began_in_redis_is_that_of_all() -> None:
    """A client that is ahead in it never goes back, as in one that a producer began."""
    house = House()
    stream = house.hub.stream(STOCK)
    epoch = f"{house.hub.publishing.new_epoch()}@1700000000000"
    house.hub.publishing.adopt(stream, Position(epoch, 0))
    filled(house, STOCK, 3)
    with listening(house.hub) as client:
        client.recover(STOCK, Position(epoch, 7))
        (gap,) = client.heard()
        assert (gap["reason"], gap["sequence"]) == (GapReason.SOURCE_UNAVAILABLE, 7)
        filled(house, STOCK, 5)
        assert sequences(client) == [(8, None)]


def test_a_client_that_was_ahead_misses_nothing_of_a_later_epoch() -> None:
    """It has joined a group, whose frames bring it a gap; then it is alone again."""
    house = House()
    stream = house.hub.stream(STOCK)
    house.hub.publishing.adopt(stream, Position("first", 0))
    filled(house, STOCK, 3)
    with listening(house.hub) as client, listening(house.hub) as other:
        other.subscribe(STOCK)
        client.recover(STOCK, Position("first", 7))
        client.heard()
        filled(house, STOCK, 4)
        client.heard()
        assert client.outbox.group is not None
        house.hub.publishing.start_epoch(stream, GapReason.SOURCE_RECONNECTED, Position("next", 0))
        assert [message["type"] for message in client.heard()] == ["gap"]
        house.hub.fanout.leave(client.outbox)
        filled(house, STOCK, 8)
        assert sequences(client) == [(sequence, None) for sequence in range(1, 9)]


def test_a_gap_behind_a_client_that_is_ahead_is_not_sent_to_it() -> None:
    """The server skips to 5, where a client was at 7: it would go back."""
    house = House()
    stream = house.hub.stream(STOCK)
    house.hub.publishing.adopt(stream, Position("of the producers", 0))
    filled(house, STOCK, 3)
    with listening(house.hub) as client:
        client.recover(STOCK, Position(stream.epoch, 7))
        client.heard()
        house.hub.publishing.start_epoch(
            stream, GapReason.HISTORY_EXPIRED, Position(stream.epoch, 5)
        )
        filled(house, STOCK, 3)
        assert sequences(client) == [(8, None)]
        house.hub.publishing.start_epoch(stream, GapReason.SOURCE_RECONNECTED, Position("next", 2))
        filled(house, STOCK, 1)
        assert [message["sequence"] for message in client.heard()] == [2, 3]


def test_a_client_is_told_that_the_source_could_not_be_asked() -> None:
    """A reason of its own, at the position that the stream has here."""
    house = House()
    filled(house, STOCK, 3)
    stream = house.hub.stream(STOCK)
    with listening(house.hub) as client:
        want = Want(STOCK, since=Position("of Redis", 7), unavailable=True)
        recovery = subscribe(house.hub, client.outbox, [want], max_replay_bytes=1 << 20)
        assert not recovery.recovered
        house.hub.fanout.start_replays(client.outbox)
        gap, last = client.heard()
        assert gap["reason"] == GapReason.SOURCE_UNAVAILABLE
        assert (gap["epoch"], gap["sequence"]) == (stream.epoch, 3)
        assert (last["sequence"], last["snapshot"]) == (3, True)


def test_a_failure_half_way_leaves_no_subscription_behind() -> None:
    """A request that fails at its second topic has not subscribed to the first."""
    house = House()
    with listening(house.hub) as client:
        client.subscribe(STOCKS[2])
        bad = Want(
            STOCKS[1],
            SubscriptionOptions(kinds=[Kind.PRICE]),  # type: ignore[arg-type]  # unhashable
        )
        with pytest.raises(TypeError):
            house.hub.subscribe(client.outbox, [Want(STOCK), bad])
        assert [str(s.topic) for s in client.outbox.subscriptions] == ["stock:C"]  # type: ignore[attr-defined]
        filled(house, STOCKS[2], 1)
        filled(house, STOCK, 1)
        assert len(client.heard()) == 1


def test_in_mode_all_the_live_flow_follows_a_replay() -> None:
    """It does not count as too much, though it is more than may wait of a live flow alone."""
    house = House(history_length=300)
    filled(house, STOCK, 300)
    epoch = house.hub.stream(STOCK).epoch
    with listening(house.hub, max_queued_bytes=10 * MESSAGE_BYTES) as client:
        client.recover(STOCK, Position(epoch, 0))
        for _ in range(100):
            filled(house, STOCK, 1)
            client.flush()
        received: list[tuple[int, int | None]] = []
        while len(received) < 400:
            received += sequences(client)
            house.hub.fanout.resume(client.outbox)
        assert received == [(sequence, None) for sequence in range(1, 401)]
        statistics = client.outbox.statistics()
        assert (statistics.replayed, statistics.delivered) == (300, 100)
        assert statistics.offered == 100
        assert statistics.replay_bytes == 0


def test_a_value_of_a_later_epoch_does_not_overtake_the_gap_before_it() -> None:
    """A client asks for another kind while a gap that it missed, and a later one, wait for it."""
    house = House()
    stream = house.hub.stream(STOCK)
    filled(house, STOCK, 6)
    with listening(house.hub) as client:
        client.outbox.hold(b"", 0, 0)  # a write is not over
        client.recover(STOCK, Position("unheard-of", 9), Kind.ORDERBOOK)
        house.hub.publishing.start_epoch(stream, GapReason.SOURCE_RECONNECTED, Position("next", 0))
        filled(house, STOCK, 1)
        client.subscribe(STOCK, Kind.PRICE)
        house.hub.fanout.resume(client.outbox)
        messages = [(message.get("epoch"), message["sequence"]) for message in client.heard()]
        first = house.hub.stream(STOCK).epoch
        assert messages == [(messages[0][0], 6), (first, 0), (None, 1)]


def test_in_mode_all_a_widened_subscription_stays_in_order_behind_a_replay() -> None:
    """The last value of a kind that is new to it was published between others that wait."""
    house = House()
    stream = house.hub.stream(STOCK)
    filled(house, STOCK, 2)
    with listening(house.hub) as client:
        client.outbox.hold(b"", 0, 0)  # a write is not over
        client.recover(STOCK, Position(stream.epoch, 0), Kind.PRICE)
        for kind in (Kind.PRICE, Kind.ORDERBOOK, Kind.PRICE):
            house.hub.publishing.publish(stream, kind, b'{"type":"x"}')
            client.flush()
        client.subscribe(STOCK, Kind.ORDERBOOK, Kind.PRICE)
        house.hub.fanout.resume(client.outbox)
        assert sequences(client) == [(sequence, None) for sequence in range(1, 6)]
        statistics = client.outbox.statistics()
        assert statistics.offered == statistics.delivered == 3


def test_options_that_change_before_a_gap_is_sent_move_no_position_ahead_of_it() -> None:
    """The gap comes first, and what follows it is counted from there."""
    house = House()
    stream = house.hub.stream(STOCK)
    with listening(house.hub) as other, listening(house.hub) as client:
        other.subscribe(STOCK, Kind.PRICE)
        house.hub.publishing.start_epoch(stream, GapReason.SOURCE_RECONNECTED, Position("e", 0))
        house.hub.publishing.publish(stream, Kind.ORDERBOOK, b'{"type":"x"}')
        client.outbox.hold(b"\x89\x00", 0, 0)
        client.recover(STOCK, Position("former", 7), Kind.PRICE)
        want = Want(STOCK, SubscriptionOptions(Mode.LATEST))
        recovery = subscribe(house.hub, client.outbox, [want], max_replay_bytes=0)
        assert recovery.positions[STOCK] == Position("e", 0)
        filled(house, STOCK, 1)
        client.flush()
        house.hub.fanout.resume(client.outbox)
        received = client.heard()
        assert received[0]["type"] == "gap"
        assert [(m["sequence"], m.get("previous")) for m in received[1:]] == [(1, None), (2, None)]


def test_a_gap_that_was_not_received_is_sent_again_to_the_restored_session() -> None:
    """Neither the answer nor a ping that overtook the gap confirm the position behind it."""
    house = House()
    filled(house, STOCK, 6)
    since = Position("unheard-of", 9)
    with listening(house.hub) as client:
        client.outbox.hold(b"", 0, 0)  # a write is not over
        client.recover(STOCK, since)
        house.hub.mark_ping(client.outbox)
        house.hub.mark_pong(client.outbox)
        (held,) = record_session(client.outbox).subscriptions
        assert held.confirmed == since
        house.hub.fanout.resume(client.outbox)
        assert [message["type"] for message in client.heard()] == ["gap", "x"]
        house.hub.mark_ping(client.outbox)
        house.hub.mark_pong(client.outbox)
        (held,) = record_session(client.outbox).subscriptions
        assert held.confirmed == Position(house.hub.stream(STOCK).epoch, 6)


def restored(house: House, record: SessionRecord, since: Position | None = None) -> list[int]:
    """Restore a session, from `since` if its client names that; the sequences of the snapshots."""
    (held,) = record.subscriptions
    options = SubscriptionOptions(held.mode, held.kinds, snapshot=False)
    want = Want(held.topic, options, since or held.confirmed, unconfirmed=held.unconfirmed)
    with listening(house.hub) as client:
        recovery = subscribe(house.hub, client.outbox, [want], max_replay_bytes=1 << 20)
        house.hub.fanout.start_replays(client.outbox)
        return [last.sequence for last in recovery.snapshots]


def test_last_values_that_were_lost_with_the_connection_come_again() -> None:
    """Nothing tells whether the answer to `subscribe` arrived before a ping behind it is answered.

    Of what a position proves, nothing comes again; what has changed since is missed, not known.
    """
    house = House()
    filled(house, STOCK, 3)
    want = Want(STOCK)
    with listening(house.hub) as client:
        house.hub.mark_ping(client.outbox)
        subscribe(house.hub, client.outbox, [want], max_replay_bytes=0)
        house.hub.mark_pong(client.outbox)  # for the ping before the answer
        record = decode_record(encode_session(client.outbox))
        assert restored(house, record) == [3]
        epoch = house.hub.stream(STOCK).epoch
        house.hub.publishing.publish(house.hub.stream(STOCK), Kind.ORDERBOOK, b'{"type":"x"}')
        assert restored(house, record) == [3]
        assert restored(house, record, Position(epoch, 4)) == [3]
        filled(house, STOCK, 1)
        assert restored(house, record) == []
        assert restored(house, record, Position(epoch, 5)) == []
        house.hub.mark_ping(client.outbox)
        house.hub.mark_pong(client.outbox)
        (held,) = record_session(client.outbox).subscriptions
        assert held.unconfirmed is None


def test_last_values_after_a_gap_that_were_lost_come_again() -> None:
    """The gap arrived, and the connection ended before what follows it."""
    house = House()
    stream = house.hub.stream(STOCK)
    with listening(house.hub) as client:
        client.subscribe(STOCK)
        latest = [(Kind.PRICE, 7, b'{"type":"x","sequence":7}')]
        house.hub.publishing.start_epoch(
            stream, GapReason.SOURCE_RECONNECTED, Position("e", 8), latest
        )
        client.flush()
        record = decode_record(encode_session(client.outbox))
        assert restored(house, record, Position("e", 8)) == [7]
        house.hub.mark_ping(client.outbox)
        house.hub.mark_pong(client.outbox)
        record = record_session(client.outbox)
        assert restored(house, record, Position("e", 8)) == []


def test_last_values_after_a_gap_of_one_client_come_again() -> None:
    """A ping that overtakes the gap confirms nothing of what follows it."""
    house = House()
    filled(house, STOCK, 6)
    with listening(house.hub) as client:
        client.outbox.hold(b"", 0, 0)  # a write is not over
        client.recover(STOCK, Position("unheard-of", 9))
        house.hub.mark_ping(client.outbox)
        house.hub.mark_pong(client.outbox)
        record = record_session(client.outbox)
        here = Position(house.hub.stream(STOCK).epoch, 6)
        assert restored(house, record, here) == [6]
        house.hub.fanout.resume(client.outbox)
        house.hub.mark_ping(client.outbox)
        house.hub.mark_pong(client.outbox)
        assert restored(house, record_session(client.outbox), here) == []
