"""Revocations of tokens: asked for each token used, so all are in memory; kept in Redis as well.

A process reads them when it starts, and again whenever it may have missed one. It writes back what
Redis has lost.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, NoReturn, Protocol

import attrs
import cattrs
import orjson
import structlog
import trio

from streamer.admin.models import ApiError
from streamer.auth.identity import Identity
from streamer.bounded_log import BoundedLog
from streamer.broker.errors import RedisConnectionError
from streamer.protocol.codec import CONVERTER

MAX_REVOCATIONS: Final = 100_000
"""Revocations that are kept: some 20 MB in each process and in Redis."""

_READ_INTERVAL_SECONDS: Final = 60.0
"""How often they are read even if none can have been missed: Redis may have lost its data."""

_RETRY_SECONDS: Final = 1.0

_STORE_SECONDS: Final = 1.0
"""How long the store may take: connections are closed after that, in any case."""

_ENTRIES_PER_TURN: Final = 500
"""Entries that are decoded, encoded or written before other tasks have a turn."""

_SWEEP_SECONDS: Final = 5.0
"""How often connections are compared with all revocations: a token may be verified just before it
is revoked, and its connection be there just after."""

Entry = tuple[bytes, float]
"""A revocation as text, and until when it is kept: seconds since 1970."""

log = structlog.get_logger()


class RevocationStore(Protocol):
    """Keeps revocations for all processes. Its methods raise RedisConnectionError."""

    async def add(self, entries: Sequence[Entry], *, now_seconds: float) -> None:
        """Keep revocations, each to its end."""

    async def load(self, *, now_seconds: float) -> list[Entry]:
        """Return all that have not ended."""


@attrs.frozen
class Revocation:
    """The tokens of a user that were issued before a time, or one token by its id."""

    user: str | None = None
    issued_before: float | None = None
    jti: str | None = None

    def __attrs_post_init__(self) -> None:
        by_user = self.user is not None and self.issued_before is not None
        if by_user == (self.jti is not None):
            raise ValueError("either user and issued_before, or jti")

    def to_text(self) -> bytes:
        """Write it as JSON, always the same for the same revocation."""
        return orjson.dumps(CONVERTER.unstructure(self))

    @classmethod
    def from_text(cls, text: bytes) -> Revocation:
        """Read it. Raises ValueError."""
        try:
            return CONVERTER.structure(orjson.loads(text), cls)
        except cattrs.BaseValidationError:
            raise ValueError(f"no revocation: {text[:200]!r}") from None


class Revocations:
    """The revocations that this process knows."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._clock = clock
        self._users: dict[str, tuple[float, float]] = {}
        """By user: the latest `issued_before`, and until when it is kept."""
        self._tokens: dict[str, float] = {}
        """By id: until when it is kept."""

    def __len__(self) -> int:
        return len(self._users) + len(self._tokens)

    def is_revoked(self, identity: Identity) -> bool:
        """Whether the token of an identity was revoked. Never waits."""
        if identity.token_id is not None and identity.token_id in self._tokens:
            return True
        known = self._users.get(identity.user_id)
        if known is None:
            return False
        return identity.issued_at is None or identity.issued_at < known[0]

    def add(self, revocation: Revocation, until_seconds: float) -> bool:
        """Take a revocation; return whether it was not known."""
        if until_seconds <= self._clock():
            return False
        if revocation.jti is not None:
            known = self._tokens.get(revocation.jti, 0.0)
            self._tokens[revocation.jti] = max(known, until_seconds)
            return not known
        assert revocation.user is not None
        assert revocation.issued_before is not None
        before, until = self._users.get(revocation.user, (-1.0, 0.0))
        latest = max(before, revocation.issued_before)
        self._users[revocation.user] = latest, max(until, until_seconds)
        return latest > before

    def expire(self) -> None:
        """Forget those that can matter no more."""
        now = self._clock()
        # Not by dictionaries of those that are left: to make these takes 30 times as long.
        for jti in [jti for jti, until in self._tokens.items() if until <= now]:
            del self._tokens[jti]
        for user in [user for user, (_, until) in self._users.items() if until <= now]:
            del self._users[user]

    def entries(self) -> Iterator[Entry]:
        """Yield those that there are now, as they are stored; others may be added meanwhile."""
        tokens, users = tuple(self._tokens.items()), tuple(self._users.items())
        for jti, until in tokens:
            yield Revocation(jti=jti).to_text(), until
        for user, (before, until) in users:
            yield Revocation(user=user, issued_before=before).to_text(), until


class RevocationSync:
    """Keeps the revocations of this process and those of the store alike."""

    def __init__(
        self,
        revocations: Revocations,
        store: RevocationStore | None,
        *,
        reads: bool,
        on_new: Callable[[], Awaitable[object]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`on_new` is called when the store had some that were not known here.

        Without a store, they are kept in this process alone; with `reads` false, this process needs
        none of the store's.
        """
        self._revocations = revocations
        self._store = store
        self._reads = reads
        self._on_new = on_new
        self._clock = clock
        self._wanted = trio.Event()
        self._warn = BoundedLog(log.warning)

    async def keep(self, text: bytes, until_seconds: float) -> str | None:
        """Keep a revocation for all processes; return why it could not be stored, if so.

        Then it is stored as soon as possible. Raises ApiError if too many are kept.
        """
        if len(self._revocations) >= MAX_REVOCATIONS:
            raise ApiError(503, f"{MAX_REVOCATIONS} revocations are kept already")
        self._revocations.add(Revocation.from_text(text), until_seconds)
        if self._store is None:
            return None
        try:
            with trio.fail_after(_STORE_SECONDS):
                await self._store.add([(text, until_seconds)], now_seconds=self._clock())
        except trio.TooSlowError:
            problem = f"no answer within {_STORE_SECONDS:g} s"
        except RedisConnectionError as error:
            problem = str(error)
        else:
            return None
        self.read_soon()
        return problem

    def read_soon(self) -> None:
        """Read them as soon as possible: some may have been missed."""
        self._wanted.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Read them when needed, until cancelled; started after the first attempt."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            if self._store is not None and self._reads:
                await nursery.start(self._read_when_needed, self._store)
            task_status.started()
        raise AssertionError("its tasks run until they are cancelled")

    async def _sweep(self) -> NoReturn:
        while True:
            await trio.sleep(_SWEEP_SECONDS)
            self._revocations.expire()
            if len(self._revocations):
                await self._on_new()

    async def _read_when_needed(
        self,
        store: RevocationStore,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        is_read = await self._read(store)
        task_status.started()
        while True:
            if is_read:
                with trio.move_on_after(_READ_INTERVAL_SECONDS):
                    await self._wanted.wait()
            else:
                await trio.sleep(_RETRY_SECONDS)
            self._wanted = trio.Event()
            is_read = await self._read(store)

    async def _write_lost(self, store: RevocationStore, stored: Iterable[Entry]) -> None:
        """Write the revocations that the store lacks. Raises RedisConnectionError."""
        known = {text for text, _ in stored}
        await trio.lowlevel.checkpoint()  # that takes 10 ms
        lost: list[Entry] = []
        for number, entry in enumerate(self._revocations.entries(), 1):
            if number % _ENTRIES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            if entry[0] not in known:
                lost.append(entry)
        for start in range(0, len(lost), _ENTRIES_PER_TURN):
            await store.add(lost[start : start + _ENTRIES_PER_TURN], now_seconds=self._clock())

    async def _read(self, store: RevocationStore) -> bool:
        """Read all, and write those that the store lacks; return whether that worked."""
        try:
            stored = await store.load(now_seconds=self._clock())
            await self._write_lost(store, stored)
        except RedisConnectionError as error:
            self._warn("read", "revocations not read, and tried again", reason=str(error))
            return False
        has_new = False
        for number, (text, until) in enumerate(stored, 1):
            if number % _ENTRIES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            try:
                has_new |= self._revocations.add(Revocation.from_text(text), until)
            except ValueError as error:
                self._warn("entry", "revocation not understood", reason=str(error))
        if has_new:
            await self._on_new()
        return True
