"""The server: the nursery tree, from start to drain.

    serve
    ├── source            opens and closes topics; with Redis: reader and probe, and positions
    ├── flush loop
    ├── heartbeat
    ├── confirmations     pings clients that receive much, between their heartbeats
    ├── expiry            releases unused topics, and forgets old history
    ├── sessions          saves and forgets sessions that can be restored
    ├── authenticator     fetches the keys of tokens, and reads changed key files again
    ├── control           carries out what operators ask of this process, or of all
    ├── HTTP listener     statistics, connections and health, and the operator's API and page
    │   └── samples       of the last 15 minutes of statistics
    ├── token expiry      notifies clients whose tokens end, and closes those that do nothing
    ├── loop lag          measures how long the event loop is held up
    ├── loop budget       defers work that would make a turn too long
    └── connections       outlives the listeners while draining
        ├── handshakes    cuts those that take too long
        ├── listeners     cancelled first on drain
        └── per client    one task that reads; others only while its socket is full, or while a
                          request waits

A failure of one client ends its own task and is logged. A bug in the source, the hub or the flush
loop ends the server, with a traceback: otherwise clients could receive a wrong stream unnoticed.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, NoReturn

import structlog
import trio

from streamer import __version__
from streamer.admin.http import Readiness, Report, at_once, serve_http
from streamer.admin.market import MarketPage, PageRoute, market_routes
from streamer.admin.models import ProcessInfo
from streamer.auth.authenticator import Authenticator
from streamer.auth.permissions import Permissions
from streamer.broker.cluster_reader import reader_type
from streamer.broker.history import LEAST_ENTRIES_PER_READ, RedisHistory
from streamer.broker.reader import PubSubReader
from streamer.broker.requests import RedisClient
from streamer.broker.sessions import RedisSessions
from streamer.config import Settings
from streamer.control.actions import Here
from streamer.control.activity import TopicActivity
from streamer.control.process import ProcessControl
from streamer.control.publishing import MemoryPublishing
from streamer.control.revocations import Revocations
from streamer.edge.acceptor import Acceptor
from streamer.edge.confirmation import Confirmations
from streamer.edge.heartbeat import Heartbeat
from streamer.edge.listeners import listener_port, open_listeners
from streamer.edge.loop_budget import LoopBudget
from streamer.edge.requests import Services
from streamer.edge.served import ConnectionInfo, Transport
from streamer.edge.sessions import RestorableSessions
from streamer.edge.tls import ServerTls, TlsWriter
from streamer.edge.token_expiry import TokenExpiry
from streamer.hub.flush import FlushLoop
from streamer.hub.hub import Hub
from streamer.hub.outbox import Outbox
from streamer.hub.parts import Parts, completed
from streamer.hub.wakeup import Wakeup
from streamer.listen_error import place_of, split_hosts
from streamer.loop_lag import LoopLag
from streamer.protocol.codec import CONVERTER, utc_timestamp
from streamer.protocol.endpoint import WEBSOCKET_PATH
from streamer.protocol.topics import Topic
from streamer.session_store import SessionStore
from streamer.source.demand import TopicDemand
from streamer.source.memory import MemoryBus
from streamer.source.positions import Bus, PositionReader
from streamer.source.reads import NoReads, ReadQueue, TopicReads
from streamer.source.report import SourceReport
from streamer.source.router import Router
from streamer.source.topics import TopicSource
from streamer.statistics import ServerStatistics, in_turns, statistics_in_parts
from streamer.urls import redact
from streamer.wire.deflate import Compression
from streamer.wire.events import EventStream
from streamer.wire.json import WebSocketJson

_EXPIRY_INTERVAL_SECONDS: Final = 1.0
_RELEASED_PER_TURN: Final = 100
"""Unused topics that are released before other tasks have a turn: with what the source does for
each, some 4 ms. Thousands are due together when many clients have left together."""
_LAST_SAVE_SECONDS: Final = 2.0
"""The deadline for saving positions confirmed during the drain; sessions are saved before it."""
_CONNECTIONS_PER_TURN: Final = 100
"""Connections described in a turn of the loop, for the list of connections."""

log = structlog.get_logger()


class RedisRequired(Exception):  # noqa: N818 - reads as what it says
    """Redis cannot be reached, and the settings require it at the start."""


class Server:
    """A running server; `serve` makes it."""

    def __init__(
        self,
        settings: Settings,
        shutdown: trio.Event,
        market: MarketPage | None = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        self.settings = settings
        self._sockets = sockets
        self._market = market
        self.instance = secrets.token_hex(4)
        wakeup = Wakeup()
        demand = TopicDemand()
        self._tls_writer = TlsWriter()
        self.hub = Hub(
            epoch=self.instance,
            upstream=demand,
            wakeup=wakeup,
            clock=trio.current_time,
            timestamp=utc_timestamp,
            linger_seconds=settings.linger_seconds,
            history_length=settings.history_length,
            max_history_bytes=settings.max_history_bytes,
            max_unused_topics=settings.max_unused_topics,
            max_unused_topics_per_client=settings.max_subscriptions,
            write=os.write if settings.tls_certificate is None else self._tls_writer.write,
        )
        self._flush_loop = FlushLoop(
            self.hub.fanout,
            wakeup,
            interval_seconds=settings.flush_interval_seconds,
            stretch_limit_seconds=settings.stretch_limit_seconds,
        )
        self.bus: MemoryBus | None = None
        """The bus in the process, to publish to; None with Redis."""
        self._redis: PubSubReader | None = None
        self._commands: RedisClient | None = None
        store: SessionStore | None = None
        report = SourceReport()
        commands = RedisClient(settings.redis, client_name=f"streamer-{self.instance}")
        queue = ReadQueue(commands.renew)
        reads: TopicReads = NoReads() if settings.memory else queue
        self._router = Router(
            self.hub.publishing,
            self._flush_loop,
            reads,
            report,
            max_publication_bytes=settings.max_publication_bytes,
            max_book_levels=settings.max_book_levels,
        )
        bus: Bus
        self._positions: PositionReader | None = None
        if settings.memory:
            bus = self.bus = MemoryBus(self._router)
        else:
            bus = self._redis = reader_type(settings.redis)(
                settings.redis,
                self._router,
                probe_interval_seconds=settings.probe_interval_seconds,
                probe_timeout_seconds=settings.probe_timeout_seconds,
            )
            self._commands = commands
            self._positions = PositionReader(
                queue,
                bus,
                RedisHistory(
                    self._commands,
                    report.unreadable,
                    entries_per_read=max(settings.history_length, LEAST_ENTRIES_PER_READ),
                ),
                new_epoch=self.hub.publishing.new_epoch,
                subscribe_timeout_seconds=settings.subscribe_timeout_seconds,
            )
            store = RedisSessions(
                self._commands, lifetime_seconds=settings.session_lifetime_seconds
            )
        self._source = TopicSource(
            self.hub.publishing,
            demand,
            self._router,
            bus,
            reads=reads,
            positions=self._positions,
            subscribe_timeout_seconds=settings.subscribe_timeout_seconds,
        )
        self._loop_lag = LoopLag()
        self._heartbeat = Heartbeat(
            interval_seconds=settings.heartbeat_interval_seconds,
            timeout_seconds=settings.heartbeat_timeout_seconds,
        )
        self._sessions = RestorableSessions(
            self._find_outbox,
            store,
            lifetime_seconds=settings.session_lifetime_seconds,
            max_bytes=settings.max_session_bytes,
        )
        self._loop_budget = LoopBudget(self._loop_lag.turn_seconds)
        self._compression = self._new_compression() if settings.compression else None
        self._revocations = Revocations()
        self._authenticator = Authenticator(settings, revocations=self._revocations)
        self._expiry = TokenExpiry(
            grace_seconds=settings.auth_grace_seconds,
            timeout_seconds=settings.auth_timeout_seconds,
        )
        services = self._services = Services(
            self.hub,
            settings,
            self._source,
            self._sessions,
            self._loop_budget,
            WebSocketJson(utc_timestamp),
            EventStream(utc_timestamp),
            self._authenticator,
            Permissions(settings),
            self._compression,
            self._expiry,
        )
        self._acceptor = Acceptor(services, self._heartbeat)
        self._control = self._make_control()
        self._tls: ServerTls | None = None
        self._shutdown = shutdown
        self._source_scope = trio.CancelScope()
        self._started_at = utc_timestamp()
        self._started_seconds = trio.current_time()
        self.websocket_url = ""
        self.http_url = ""

    def _new_compression(self) -> Compression:
        settings = self.settings
        flush_loop = self._flush_loop
        loop_budget = self._loop_budget
        limit_seconds = settings.compression_stretch_limit_seconds
        return Compression(
            utc_timestamp,
            level=settings.compression_level,
            min_message_bytes=settings.compression_min_bytes,
            min_members=settings.compression_min_members,
            max_memory_bytes=settings.max_compression_bytes,
            is_behind=lambda: flush_loop.window_seconds > limit_seconds,
            is_busy=lambda: loop_budget.is_long,
        )

    def _make_control(self) -> ProcessControl:
        settings = self.settings
        memory: MemoryPublishing | None = None
        if self.bus is not None:
            memory = MemoryPublishing(
                self.bus.publish,
                self.hub.streams.get,
                max_publication_bytes=settings.max_publication_bytes,
            )
        here = Here(
            self.instance,
            settings,
            self._acceptor.sessions,
            self.hub,
            TopicActivity(self.hub.streams),
            self._revocations,
            self._is_positioned,
            self._process_info,
        )
        return ProcessControl(here, self._authenticator, memory=memory, version=__version__)

    def _is_positioned(self, topic: Topic) -> bool | None:
        sequencer = self._router.sequencer(topic)
        return None if sequencer is None else sequencer.positioned

    def _process_info(self) -> ProcessInfo:
        readiness = self.readiness()
        return ProcessInfo(
            process=self.instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            uptime_seconds=trio.current_time() - self._started_seconds,
            connections=self.active_connections,
            ready=readiness.ready,
            reason=readiness.reason,
        )

    def _find_outbox(self, session_id: str) -> Outbox | None:
        session = self._acceptor.sessions.get(session_id)
        # A stream over HTTP has no session to restore: its clients resume by a cursor.
        is_restorable = session is not None and session.transport is Transport.WEBSOCKET
        return session.outbox if session is not None and is_restorable else None

    def shutdown(self) -> None:
        """Begin a graceful stop; `serve` returns when it is done."""
        self._shutdown.set()

    def reload(self) -> None:
        """Take the certificate for new connections from its files again; open ones are untouched.

        If the files cannot be used, that is logged and the present certificate stays.
        """
        if self._tls is None:
            return
        try:
            self._tls.reload()
        except OSError as error:  # ssl.SSLError included
            log.warning("certificate not reloaded", reason=str(error))
        else:
            log.info("certificate reloaded")

    # The nursery tree

    async def run(self, task_status: trio.TaskStatus[Server]) -> None:
        """Serve until `shutdown`; see `serve`."""
        settings = self.settings
        if settings.tls_certificate is not None and settings.tls_key is not None:
            self._tls = ServerTls(settings.tls_certificate, settings.tls_key, self._tls_writer)
        listeners = await open_listeners(
            settings, self._acceptor.on_exhausted, self._tls, self._sockets
        )
        async with AsyncExitStack() as stack, trio.open_nursery() as root:
            for listener in listeners:
                await stack.enter_async_context(listener)  # closed even if serving never begins
            if self._commands is not None:
                root.start_soon(self._commands.run)
            await self._start_services(root)
            root.start_soon(self._flush_loop.run)
            root.start_soon(self._heartbeat.run)
            root.start_soon(Confirmations(self._acceptor.sessions).run)
            root.start_soon(self._expire)
            root.start_soon(self._sessions.run)
            root.start_soon(self._expiry.run)
            report = Report(
                self._statistics_json,
                self._connections_json,
                at_once(self.readiness),
            )
            self.http_url = await root.start(
                partial(
                    serve_http,
                    report,
                    settings.http_host,
                    settings.http_port,
                    api=self._control.api,
                    pages=self._pages(listener_port(listeners[0])),
                    allowed_hosts=settings.http_allowed_hosts,
                )
            )
            self.websocket_url = self._url(listener_port(listeners[0]))
            async with trio.open_nursery() as connections:
                await root.start(self._loop_lag.run)
                root.start_soon(self._loop_budget.run)
                await connections.start(self._acceptor.run, listeners)
                task_status.started(self)
                log.info("serving", websocket=self.websocket_url, http=self.http_url)
                await self._shutdown.wait()
                connections.cancel_scope.deadline = (
                    trio.current_time() + settings.drain_timeout_seconds
                )
                self._acceptor.stop_accepting()
                self._source_scope.cancel()
                await self._drain()
            with trio.move_on_after(_LAST_SAVE_SECONDS):
                await self._sessions.save()
            root.cancel_scope.cancel()

    def _url(self, port: int) -> str:
        """Return the URL for clients, with the first host that they can connect to."""
        settings = self.settings
        scheme = "ws" if settings.tls_certificate is None else "wss"
        host = split_hosts(settings.host)[0]
        if self._sockets:
            host = self._sockets[0].getsockname()[0]
        return f"{scheme}://{place_of(host, port)}{WEBSOCKET_PATH}"

    def _pages(self, websocket_port: int) -> list[PageRoute]:
        settings = self.settings
        if self._market is None:
            return []
        return market_routes(
            self._market,
            websocket_port=websocket_port,
            encrypted=settings.tls_certificate is not None,
        )

    async def _start_services(self, root: trio.Nursery) -> None:
        """Start what first waits for Redis or an identity provider, all at the same time.

        Each waits until it has tried once, or until the shutdown.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_shutdown, nursery.cancel_scope)
            async with trio.open_nursery() as starting:
                for run in (self._run_source, self._authenticator.run, self._control.run):
                    starting.start_soon(root.start, run)
            nursery.cancel_scope.cancel()

    async def _cancel_at_shutdown(self, scope: trio.CancelScope) -> None:
        await self._shutdown.wait()
        scope.cancel()

    async def _run_source(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self._source_scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._source.run)
                if self._redis is not None and self._positions is not None:
                    nursery.start_soon(self._positions.run)
                    await self._connect(self._redis, nursery)
                task_status.started()

    async def _connect(self, redis: PubSubReader, nursery: trio.Nursery) -> None:
        connected = await nursery.start(redis.run)
        if not connected:
            problem = f"no Redis at {redact(self.settings.redis)}: {redis.last_error}"
            if self.settings.require_redis:
                raise RedisRequired(problem)
            log.warning("serving without a source, and trying again", problem=problem)

    async def _expire(self) -> NoReturn:
        marks: deque[tuple[float, int]] = deque()
        while True:
            await trio.sleep(_EXPIRY_INTERVAL_SECONDS)
            has_more = True
            while has_more:
                has_more = self.hub.release_unused(_RELEASED_PER_TURN)
                await trio.lowlevel.checkpoint()
            now = trio.current_time()
            marks.append((now + self.settings.history_seconds, self.hub.publishing.order))
            while marks and marks[0][0] <= now:
                self.hub.expire_history(marks.popleft()[1])

    async def _drain(self) -> None:
        """Flush pending publications, save the sessions, and dismiss the clients."""
        await self._flush_loop.finish()
        sessions = self._acceptor.sessions
        log.info("draining", connections=len(sessions))
        for session_id in sessions:
            self._sessions.changed(session_id)
        with trio.move_on_after(self.settings.drain_timeout_seconds / 2):
            await self._sessions.save()
        await self._acceptor.dismiss()

    # Statistics and readiness

    def readiness(self) -> Readiness:
        """Return whether a load balancer should send clients here."""
        if self._shutdown.is_set():
            return Readiness(ready=False, reason="shutting down")
        if self._redis is not None and not self._redis.ready:
            return Readiness(ready=False, reason=f"Redis: {self._redis.last_error or 'not proven'}")
        return Readiness(ready=True)

    @property
    def active_connections(self) -> int:
        """The number of clients connected."""
        return len(self._acceptor.sessions)

    def connections(self) -> list[ConnectionInfo]:
        """Return each connection as it is now."""
        return [session.info() for session in self._acceptor.sessions.values()]

    def statistics(self) -> ServerStatistics:
        """Return all counts until now."""
        return completed(self.statistics_in_parts())

    def statistics_in_parts(self) -> Parts[ServerStatistics]:
        """Return the same in parts, between which the event loop may serve clients."""
        return statistics_in_parts(
            self.hub,
            self._flush_loop,
            self._acceptor,
            self._router,
            self._loop_lag,
            compression=self._compression,
            ping_round_trips=self._services.ping_times,
            redis=self._redis,
            version=__version__,
            started_at=self._started_at,
            uptime_seconds=trio.current_time() - self._started_seconds,
        )

    async def _statistics_json(self) -> dict[str, Any]:
        json: dict[str, Any] = CONVERTER.unstructure(await in_turns(self.statistics_in_parts()))
        return json

    async def _connections_json(self) -> list[dict[str, Any]]:
        listed = []
        for number, session in enumerate(tuple(self._acceptor.sessions.values()), 1):
            listed.append(CONVERTER.unstructure(session.info()))
            if number % _CONNECTIONS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return listed


async def serve(
    settings: Settings,
    *,
    shutdown: trio.Event | None = None,
    market: MarketPage | None = None,
    sockets: Sequence[socket.socket] = (),
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server; started with it once it listens.

    With `market`, the HTTP port serves the page of a live market, too. With `sockets`, TCP sockets
    that listen already, clients are accepted on these rather than on `host` and `port` of the
    settings; they are closed at the end.

    Returns after a graceful stop, begun by `Server.shutdown` or by setting `shutdown`. Cancel it to
    end it at once. Raises SettingError for an unusable key file; and inside an exception group, as
    nurseries do, RedisRequired, OSError if it cannot listen, and ssl.SSLError for a certificate
    that does not match its key.
    """
    shutdown = trio.Event() if shutdown is None else shutdown
    await Server(settings, shutdown, market, sockets).run(task_status)
