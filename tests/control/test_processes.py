"""An operator's request is carried out by every process on one Redis, whichever is asked.

Covers streamer.control.actions, streamer.control.operator, streamer.control.process,
streamer.control.publishing, streamer.control.channel, streamer.control.messages,
streamer.broker.control and streamer.publisher.single.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import redis as redis_py
import structlog
import trio

from streamer.publisher import open_publisher
from tests.auth.tokens import secret_file
from tests.helpers.clients import Client, connected, open_client
from tests.helpers.identities import bearer
from tests.helpers.operator import key_file, operator_of, two_servers, until_heard
from tests.helpers.proxy import Proxy
from tests.helpers.redis_server import RedisServer
from tests.helpers.redis_topology import ClusterService, SentinelService
from tests.helpers.server import running_server
from tests.helpers.timing import DEADLINE_SECONDS, eventually
from tests.helpers.workers import running_workers

PRICE = {"type": "price_update", "stock_code": "005930", "price": 1, "change": 0}
PRICE |= {"change_percent": 0, "volume": 1}
CLIENTS = 8
"""On each instance; the kernel spreads them over its workers."""


async def test_two_instances_of_two_workers_act_as_one(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """All their clients are listed, counted and closed, by one request to one instance.

    One that hangs is not waited for, and is reported.
    """
    keys = key_file(tmp_path)
    async with (
        running_workers(redis_url, api_key_file=keys, api_timeout_seconds=4) as one,
        running_workers(redis_url, api_key_file=keys, api_timeout_seconds=4) as other,
        operator_of(one.supervisor.http_url) as operator,
        AsyncExitStack() as stack,
    ):
        while (await operator.done("info"))["answered"] < 4:
            pass
        clients: list[Client] = []
        for workers in (one, other):
            for _ in range(CLIENTS):
                client = await stack.enter_async_context(workers.connected())
                await client.subscribe("stock:005930")
                clients.append(client)
        page = await operator.done("connections", limit=10, sort="address")
        rest = await operator.done("connections", limit=10, sort="address", cursor=page["next"])
        rows = page["connections"] + rest["connections"]
        assert (page["total"], page["processes"], page["answered"]) == (2 * CLIENTS, 4, 4)
        assert len({row["session"] for row in rows}) == 2 * CLIENTS
        info = await operator.done("info")
        assert len({server["pid"] for server in info["servers"]}) == 4
        assert {row["process"] for row in rows} <= {row["process"] for row in info["servers"]}
        (topic,) = (await operator.done("topics"))["topics"]
        assert topic["subscribers"] == 2 * CLIENTS

        published = await operator.done("publish", topic="stock:005930", message=PRICE)
        assert published["sequence"] == 1
        assert published["receivers"] >= 2  # those that have clients, which the kernel decides
        for client in clients:
            assert (await client.data())["sequence"] == 1

        answer = await operator.done("disconnect", topic="stock:005930", reason="maintenance")
        assert answer == {"count": 2 * CLIENTS, "processes": 4, "answered": 4}
        for client in clients:
            assert (await client.receive_type("disconnected"))["reason"] == "maintenance"
            assert await client.closed() == 4003

        hanging = other.supervisor.workers[0].pid
        assert hanging is not None
        os.kill(hanging, signal.SIGSTOP)
        try:
            answer = await operator.done("disconnect", topic="stock:005930")
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert answer == {"count": 0, "processes": 4, "answered": 3}


async def test_requests_go_through_a_redis_that_has_taken_the_place_of_another(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The old one runs on, and would pass them on to nobody."""
    old, new = own_redis_server(), own_redis_server()
    proxy = Proxy(old.port)
    async with proxy.run():
        url = f"redis://127.0.0.1:{proxy.port}"
        async with two_servers(url, key_file(tmp_path)) as (one, other):
            proxy.server_port = new.port
            with old.connect() as redis:
                redis.client_kill_filter(_type="pubsub")
            for server in (one, other):
                await until_heard(server, 2)


async def test_a_parent_uses_the_worker_that_answers(redis_url: str, tmp_path: Path) -> None:
    """While one worker hangs, the other carries the request out."""
    async with running_workers(redis_url, api_key_file=key_file(tmp_path)) as workers:
        hanging = workers.supervisor.workers[0].pid
        assert hanging is not None
        os.kill(hanging, signal.SIGSTOP)
        try:
            async with operator_of(workers.supervisor.http_url) as operator:
                info = await operator.done("info")
                status, _ = await operator.post("disconnect")
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert [server["pid"] for server in info["servers"]] == [workers.supervisor.workers[1].pid]
        assert status == 422


async def test_an_idempotency_key_holds_on_all_servers(redis_url: str, tmp_path: Path) -> None:
    """Published once, whichever server is asked again; the answer has the first position."""
    async with two_servers(redis_url, key_file(tmp_path)) as (one, other):
        answers = []
        for server in (one, other):
            async with operator_of(server.http_url) as operator:
                answers.append(
                    await operator.done(
                        "publish", topic="stock:005930", message=PRICE, idempotency_key="k"
                    )
                )
        async with operator_of(one.http_url) as operator:
            third = await operator.done("publish", topic="stock:005930", message=PRICE)
    assert answers[0]["duplicate"] is False
    assert answers[1] == answers[0] | {"duplicate": True}
    assert third == answers[0] | {"sequence": 2}


async def test_topics_name_the_process_that_publishes(redis_url: str, tmp_path: Path) -> None:
    """It is known where producers give positions, and not of a plain one."""
    async with (
        two_servers(redis_url, key_file(tmp_path)) as (one, other),
        connected(other) as client,
        open_publisher(redis_url) as publisher,
        operator_of(one.http_url) as operator,
    ):
        await client.subscribe("stock:005930", "stock:A")
        await publisher.publish("stock:005930:price", json.dumps(PRICE))
        with redis_py.Redis.from_url(redis_url) as plain:
            plain.publish("stock:A:price", json.dumps(PRICE | {"stock_code": "A"}))
        for _ in range(2):
            await client.data()
        rows = (await operator.done("topics"))["topics"]
    assert [(row["topic"], row["producer"], row["publisher"]) for row in rows] == [
        ("stock:005930", "positioned", f"{socket.gethostname()}:{os.getpid()}"),
        ("stock:A", "plain", None),
    ]


async def test_what_is_no_request_on_the_channel_is_logged_and_ignored(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """Anybody who may write to Redis can send anything; it is logged once, and costs nobody.

    A request that cannot be carried out is answered with the reason.
    """
    deep = b"[" * 100_000
    unknown = {"id": "1", "process": "p", "action": "explode", "arguments": {}}
    wrong = {"id": "2", "process": "p", "action": "disconnect", "arguments": {"user": 5}}
    texts: list[str | bytes] = [
        b"",
        b"{}",
        b"\xff",
        deep,
        b"x" * 70_000,
        *map(json.dumps, (unknown, wrong)),
    ]
    with structlog.testing.capture_logs() as logs:
        async with two_servers(redis_url, key_file(tmp_path)) as (one, other):
            options = {"ignore_subscribe_messages": True}
            answers = redis.pubsub(**options)  # type: ignore[no-untyped-call]
            answers.subscribe("streamer:control:p")
            channels = [b"streamer:control:all", f"streamer:control:{one.instance}".encode()]
            for text in texts:
                for channel in channels:
                    redis.publish(channel, text)
            await until_heard(one, 2)
            await until_heard(other, 2)
            refusals: set[tuple[str, str, str]] = set()
            while len(refusals) < 4:  # of two requests by two servers
                message = answers.get_message(timeout=DEADLINE_SECONDS)
                if message is not None:
                    refusal = json.loads(message["data"])
                    refusals.add((refusal["id"], refusal["process"], refusal["error"]))
            answers.close()
    assert {error for _, _, error in refusals} == {
        "no action 'explode'; this process may be of another version",
        "user: expected str, got int",
    }
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert sorted(set(warnings)) == [
        "control answer not understood",
        "control request not understood",
        "control request refused",
    ]
    assert warnings.count("control request not understood") < 2 * len(texts)
    assert not [line for line in logs if line["log_level"] == "error"]


async def test_a_process_of_another_version_leaves_the_others_described(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """Its answer counts, though nothing of it can be shown."""
    asked = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    asked.subscribe("streamer:control:all")

    def answer_as_a_later_version() -> None:
        while True:
            message = asked.get_message(timeout=DEADLINE_SECONDS)
            if message is not None and (ask := json.loads(message["data"]))["action"] == "info":
                answer = {"id": ask["id"], "process": "later", "result": {"pid": "none"}}
                redis.publish(f"streamer:control:{ask['process']}", json.dumps(answer))
                return

    async with running_server(
        redis=redis_url, api_key_file=key_file(tmp_path), api_timeout_seconds=30
    ) as server:
        await eventually(lambda: redis.pubsub_numsub("streamer:control:all")[0][1] == 2)
        async with operator_of(server.http_url) as operator, trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, answer_as_a_later_version)
            info = await operator.done("info")
    asked.close()
    assert (info["processes"], info["answered"]) == (2, 2)
    assert [described["process"] for described in info["servers"]] == [server.instance]


async def test_without_redis_a_server_acts_alone_and_says_so(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """The status is 503, with what was done on the server that was asked."""
    redis_server = own_redis_server()
    async with (
        two_servers(redis_server.url, key_file(tmp_path)) as (server, _),
        connected(server) as client,
        operator_of(server.http_url) as operator,
    ):
        await client.subscribe("stock:005930")
        redis_server.stop()
        status, answer = await operator.post("connections")
        assert (status, answer["total"]) == (503, 1)
        status, answer = await operator.post("publish", topic="stock:005930", message=PRICE)
        assert status == 503
        status, answer = await operator.post("disconnect", topic="stock:005930")
        error = answer.pop("error")
        assert (status, answer) == (503, {"count": 1, "processes": 1, "answered": 1})
        assert "Redis" in error
        await eventually(lambda: not server.active_connections)
        assert await client.closed() == 4003


async def test_a_frozen_redis_does_not_hold_up_the_answer(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """A Redis that accepts and is silent counts as gone."""
    redis_server = own_redis_server()
    async with running_server(redis=redis_server.url, api_key_file=key_file(tmp_path)) as server:
        await until_heard(server, 1)
        async with operator_of(server.http_url) as operator:
            redis_server.pause()
            try:
                status, answer = await operator.post("disconnect", topic="stock:005930")
            finally:
                redis_server.resume()
    assert (status, answer["count"], answer["answered"]) == (503, 0, 1)


async def test_a_server_that_returns_hears_the_channel_again(
    own_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """After Redis was restarted, both servers are reached again."""
    redis_server = own_redis_server()
    async with two_servers(redis_server.url, key_file(tmp_path)) as (one, _):
        redis_server.restart()
        async with operator_of(one.http_url) as operator:
            answered = 0
            while answered < 2:
                _, answer = await operator.post("info")
                answered = answer["answered"]


async def test_a_unix_socket_carries_the_channel(
    redis_server: RedisServer, redis: redis_py.Redis, tmp_path: Path
) -> None:
    """Every kind of URL does, since the connections are those of publications."""
    async with (
        two_servers(redis_server.unix_url, key_file(tmp_path)) as (one, _),
        operator_of(one.http_url) as operator,
    ):
        answer = await operator.done("disconnect", user="42")
    assert answer == {"count": 0, "processes": 2, "answered": 2}


async def test_a_cluster_carries_the_channel(tmp_path: Path) -> None:
    """Requests and publications go to the master that serves their slot."""
    with ClusterService(calm=True) as cluster:
        async with (
            two_servers(cluster.url, key_file(tmp_path)) as (one, _),
            operator_of(one.http_url) as operator,
        ):
            answer = await operator.done("disconnect", topic="stock:005930")
            published = await operator.done("publish", topic="stock:005930", message=PRICE)
    assert answer == {"count": 0, "processes": 2, "answered": 2}
    assert published["sequence"] == 1


async def test_sentinels_lead_the_channel_to_the_next_master(tmp_path: Path) -> None:
    """After a failover, requests reach all servers again, and a revocation is still there."""
    secrets = {"auth": "optional", "auth_secret_file": secret_file(tmp_path)}
    with SentinelService() as service:
        async with (
            two_servers(service.url, key_file(tmp_path), **secrets) as (one, _),
            operator_of(one.http_url) as operator,
        ):
            answer = await operator.done("revoke", jti="stolen")
            assert (answer["processes"], answer["answered"]) == (2, 2)
            await trio.to_thread.run_sync(service.replicate)
            service.master.kill()
            await trio.to_thread.run_sync(service.wait_failed_over)
            reached = 0
            while reached < 2:
                _, answer = await operator.post("disconnect", user="42")
                reached = answer["answered"]
            published = await operator.done("publish", topic="stock:005930", message=PRICE)
            assert published["sequence"]
            async with (
                running_server(redis=service.url, **secrets) as later,
                open_client(later, headers=bearer(jti="stolen")) as client,
            ):
                assert (await client.receive_type("error"))["code"] == "INVALID_TOKEN"
