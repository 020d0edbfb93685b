"""A flush that is held up between two writes, and what one client does meanwhile: every case.

The state machine of `test_contract` finds these, too, but not in each run.

Covers streamer.hub.roster.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
import trio
from trio.testing import MockClock

from streamer.hub.flush import FlushLoop
from streamer.protocol.messages import Mode
from streamer.protocol.topics import Kind
from tests.helpers.timing import real_deadline
from tests.hub.world import TOPICS, Client, Options, World

OPTIONS = Options(Mode.LATEST, frozenset(Kind), 0.0)
CLIENTS = 5


def unsubscribe(world: World, client: Client) -> None:
    """It gives the topic up."""
    world.unsubscribe(client, [TOPICS[0]])


def subscribe(world: World, client: Client) -> None:
    """It wants another topic, too."""
    world.subscribe(client, TOPICS[1:2], OPTIONS)


def leave_and_return(world: World, client: Client) -> None:
    """It unsubscribes and subscribes again: last among those that hold the topic."""
    world.unsubscribe(client, [TOPICS[0]])
    world.subscribe(client, TOPICS[:1], OPTIONS)


def return_and_leave(world: World, client: Client) -> None:
    """It unsubscribes, subscribes again, and unsubscribes again."""
    leave_and_return(world, client)
    world.unsubscribe(client, [TOPICS[0]])


def disconnect(world: World, client: Client) -> None:
    """Its session ends, and its descriptor may be another's."""
    world.disconnect(client)


def be_replaced(world: World, client: Client) -> None:
    """Another client joins its group, and it disconnects."""
    (subscription,) = client.outbox.subscriptions.values()
    lane = subscription.lane
    world.subscribe(world.connect(), TOPICS[:1], Options(lane.mode, lane.kinds, 0.0))
    world.disconnect(client)


def be_left_alone(world: World, client: Client) -> None:
    """All others of its group disconnect."""
    group = client.outbox.group
    for other in [c for c in world.clients if c is not client and c.outbox.group is group]:
        world.disconnect(other)


def fill(world: World, client: Client) -> None:
    """Pings fill its socket."""
    while not client.outbox.blocked:
        world.ping(client)


def fill_and_read(world: World, client: Client) -> None:
    """Pings fill its socket, and then it reads all."""
    fill(world, client)
    while client.outbox.blocked:
        client.read()
        client.write()


EVENTS = (
    unsubscribe,
    subscribe,
    leave_and_return,
    return_and_leave,
    disconnect,
    fill,
    fill_and_read,
)


@pytest.mark.parametrize("writes_per_turn", [1, 2])
@pytest.mark.parametrize("event", EVENTS)
def test_whatever_one_client_does_meanwhile_each_gets_the_flush_once(
    event: Callable[[World, Client], None], writes_per_turn: int
) -> None:
    """Whoever does it, before or after its turn, in the first flush or a later one."""
    for number in range(CLIENTS):
        for turns in range(CLIENTS):
            with closing(World(writes_per_turn=writes_per_turn)) as world:
                clients = [world.connect() for _ in range(CLIENTS)]
                for client in clients:
                    world.subscribe(client, TOPICS[:1], OPTIONS)
                flush_around(world, clients[number], event, turns)


@pytest.mark.parametrize(
    "event",
    [unsubscribe, subscribe, leave_and_return, disconnect, be_replaced, fill, fill_and_read],
)
def test_a_client_that_is_alone_in_its_group_gets_the_flush_once(
    event: Callable[[World, Client], None],
) -> None:
    """Each has options of its own: a group with one member is written to in a way of its own."""
    kinds = [frozenset(Kind), frozenset({Kind.PRICE})]
    own = [Options(mode, which, 0.0) for mode in Mode for which in kinds]
    for number in range(len(own)):
        for turns in range(len(own)):
            with closing(World(writes_per_turn=1)) as world:
                clients = [world.connect() for _ in own]
                for client, options in zip(clients, own, strict=True):
                    world.subscribe(client, TOPICS[:1], options)
                world.publish(TOPICS[0], Kind.PRICE, 0)
                world.settle()
                assert world.hub.fanout.groups == len(own)
                flush_around(world, clients[number], event, turns)


@pytest.mark.parametrize("event", [*EVENTS, be_left_alone])
def test_clients_with_lists_of_their_own_and_others_get_the_flush_once(
    event: Callable[[World, Client], None],
) -> None:
    """Two have another topic besides, and so are alone in their groups; three share a frame."""
    for number in range(CLIENTS):
        for turns in range(CLIENTS):
            with closing(World(writes_per_turn=3)) as world:
                clients = [world.connect(events=place >= 2) for place in range(CLIENTS)]
                for client in clients:
                    world.subscribe(client, TOPICS[:1], OPTIONS)
                for client, topic in zip(clients, TOPICS[1:3], strict=False):
                    world.subscribe(client, [topic], OPTIONS)
                world.publish(TOPICS[0], Kind.PRICE, 0)
                world.settle()
                assert world.hub.fanout.groups == 3
                flush_around(world, clients[number], event, turns)


def test_the_clients_of_a_topic_change_between_flushes() -> None:
    """Each flush writes to those that are there, and to their present descriptors."""
    with closing(World(writes_per_turn=9)) as world:
        clients = [world.connect() for _ in range(CLIENTS)]
        for client in clients:
            world.subscribe(client, TOPICS[:1], OPTIONS)
        for client, topic in zip(clients, TOPICS[1:4], strict=False):
            world.subscribe(client, [topic], OPTIONS)
        for event in (subscribe, unsubscribe, leave_and_return, fill_and_read, fill, disconnect):
            for client in clients[:4]:
                if client in world.clients:
                    event(world, client)
                    world.publish(TOPICS[0], Kind.PRICE, 0)
                    world.settle()


@pytest.mark.parametrize(("size", "turns"), [(0, 1), (20_000, 5)])
def test_large_frames_for_one_client_each_end_a_turn_sooner(size: int, turns: int) -> None:
    """To make one out of hundreds of messages takes as long as many writes."""
    kinds = [frozenset(Kind), frozenset({Kind.PRICE})]
    own = [Options(mode, which, 0.0) for mode in Mode for which in kinds]
    with closing(World(writes_per_turn=5)) as world:
        for options in own:
            world.subscribe(world.connect(), TOPICS[:1], options)
        world.publish(TOPICS[0], Kind.PRICE, 0)
        world.settle()
        world.publish(TOPICS[0], Kind.PRICE, size)
        world.flush_begin(stretched=False)
        steps = 1
        while world.flushing:
            world.flush_step()
            steps += 1
        assert steps == turns
        world.settle()
        world.empty()


def flush_around(
    world: World, client: Client, event: Callable[[World, Client], None], turns: int
) -> None:
    """Flush twice, with the event in the middle, and check what each client was sent."""
    for _ in range(2):
        world.publish(TOPICS[0], Kind.PRICE, 0)
        world.flush_begin(stretched=False)
        for _ in range(turns):
            if world.flushing:
                world.flush_step()
        if client in world.clients:
            event(world, client)
            world.check()
        world.flush_finish()
    world.settle()
    assert all(client.pings == client.pings_sent for client in world.clients)
    world.empty()


@pytest.mark.parametrize(("busy_seconds", "turns"), [(0.0, CLIENTS), (0.001, 2)])
async def test_a_flush_takes_its_share_where_others_have_much_to_do(
    busy_seconds: float, turns: int, mock_clock: MockClock
) -> None:
    """A write for each turn as a rule; where others take long turns, all that there is to write."""
    world = World(writes_per_turn=1, clock=trio.current_time)
    flush_loop = FlushLoop(
        world.hub.fanout, world.wakeup, interval_seconds=0, stretch_limit_seconds=1
    )
    taken = 0

    async def take_turns() -> None:
        nonlocal taken
        while True:
            await trio.lowlevel.checkpoint()
            mock_clock.jump(busy_seconds)
            taken += flush_loop.flushing

    with closing(world):
        for _ in range(CLIENTS):
            world.subscribe(world.connect(), TOPICS[:1], OPTIONS)
        world.publish(TOPICS[0], Kind.PRICE, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush_loop.run)
            nursery.start_soon(take_turns)
            await flush_loop.finish()
            nursery.cancel_scope.cancel()
    assert taken == pytest.approx(turns, abs=1)


async def test_what_comes_before_a_flush_is_over_waits_for_the_next_one() -> None:
    """Also before the task of the loop has taken over what did not fit into the first call."""
    world = World(writes_per_turn=1, clock=trio.current_time)
    flush_loop = FlushLoop(
        world.hub.fanout, world.wakeup, interval_seconds=0, stretch_limit_seconds=1
    )
    with closing(world):
        clients = [world.connect() for _ in range(CLIENTS)]
        for client in clients:
            world.subscribe(client, TOPICS[:1], OPTIONS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush_loop.run)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                flush_loop.hold()
                world.publish(TOPICS[0], Kind.PRICE, 0)
                flush_loop.release()
            while flush_loop.flushing or world.hub.fanout.dirty:
                await flush_loop.finish()
            nursery.cancel_scope.cancel()
        for client in clients:
            client.read()
            assert client.received == 3


RATED = Options(Mode.LATEST, frozenset(Kind), 1.0)


def received(clients: list[Client]) -> list[int]:
    """How many messages each client has received by now."""
    for client in clients:
        client.read()
    return [client.received for client in clients]


def test_a_flush_leaves_topics_that_cost_much_to_the_next_one() -> None:
    """Topics that cost little overtake them; they are flushed in order, none is forgotten."""
    with closing(World(writes_per_turn=1, messages_per_flush=200)) as world:
        many = [world.connect() for _ in range(20)]
        for client in many:
            world.subscribe(client, TOPICS[:2], Options(Mode.ALL, frozenset(Kind), 1.0))
        grouped, rated = world.connect(), world.connect()
        world.subscribe(grouped, TOPICS[2:3], OPTIONS)
        world.subscribe(rated, TOPICS[3:4], RATED)
        for topic in TOPICS[:2]:
            for _ in range(7):
                world.publish(topic, Kind.PRICE, 0)
        world.publish(TOPICS[2], Kind.STATUS, 0)
        world.publish(TOPICS[3], Kind.PRICE, 0)
        progress = []
        while world.hub.fanout.dirty:
            world.flush_begin(stretched=False)
            world.flush_finish()
            progress.append((received(many), received([grouped, rated])))
        assert progress == [([7] * 20, [1, 1]), ([14] * 20, [1, 1])]
        assert not world.hub.fanout.is_behind
        world.settle()
        world.empty()


def test_a_flush_leaves_messages_of_a_rate_to_the_next_one() -> None:
    """When the time of very many has come at once, those that have waited longest come first."""
    with closing(World(writes_per_turn=1, messages_per_flush=2)) as world:
        clients = [world.connect() for _ in range(5)]
        for client in clients:
            world.subscribe(client, TOPICS[:1], RATED)
        for _ in range(2):
            world.publish(TOPICS[0], Kind.PRICE, 0)
            world.flush_begin(stretched=False)
            world.flush_finish()
        assert received(clients) == [1] * 5
        assert not world.hub.fanout.is_behind
        world.now += RATED.interval_seconds
        progress: list[list[int]] = []
        while not progress or world.hub.fanout.is_behind:
            world.flush_begin(stretched=False)
            world.flush_finish()
            progress.append(received(clients))
        assert progress == [[2, 2, 1, 1, 1], [2, 2, 2, 2, 1], [2] * 5]
        world.settle()
        world.empty()


@pytest.mark.parametrize("writes_per_turn", [1, 100])
async def test_what_a_flush_leaves_is_flushed_at_once(
    writes_per_turn: int, mock_clock: MockClock
) -> None:
    """The next flush begins without waiting for the interval, whoever began the first."""
    world = World(writes_per_turn=writes_per_turn, messages_per_flush=1, clock=trio.current_time)
    flush_loop = FlushLoop(
        world.hub.fanout, world.wakeup, interval_seconds=1000, stretch_limit_seconds=1000
    )
    with closing(world):
        clients = [world.connect() for _ in range(CLIENTS)]
        for client in clients:
            world.subscribe(client, TOPICS[:2], RATED)
        async with real_deadline(), trio.open_nursery() as nursery:
            nursery.start_soon(flush_loop.run)
            await trio.testing.wait_all_tasks_blocked()
            flush_loop.hold()
            for topic in TOPICS[:2]:
                world.publish(topic, Kind.PRICE, 0)
            flush_loop.release()
            await flush_loop.finish()
            assert received(clients) == [2] * CLIENTS
            for topic in TOPICS[:2]:
                world.publish(topic, Kind.PRICE, 0)
            mock_clock.jump(1000)
            await flush_loop.finish()
            assert received(clients) == [4] * CLIENTS
            nursery.cancel_scope.cancel()
