"""The keys at a URL: a JWK Set (RFC 7517), fetched by one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import httpx2
import structlog
import trio

from streamer.auth.keys import MAX_KEYS_BYTES, KeyProblem, VerificationKey, jwk_set
from streamer.auth.requests import TIMEOUT_SECONDS, HttpProblem, request_json
from streamer.backoff import Backoff

REFRESH_SECONDS: Final = 600.0
"""How long keys are used before they are fetched again: providers publish new ones days ahead."""

UNKNOWN_KEY_SECONDS: Final = 30.0
"""The least time between two fetches that tokens with an unknown `kid` cause.

Anybody can make such tokens, and must not be able to make this server load its provider.
"""

_MAX_RETRY_SECONDS: Final = 60.0

log = structlog.get_logger()


async def fetch_keys(client: httpx2.AsyncClient, url: str) -> tuple[VerificationKey, ...]:
    """Fetch a JWK Set once. Raises HttpProblem and KeyProblem."""
    status, body = await request_json(client, "GET", url, max_bytes=MAX_KEYS_BYTES)
    if status != httpx2.codes.OK:
        raise HttpProblem(f"answered with status {status}")
    return jwk_set(body)


class JwksSource:
    """The keys at one URL, which is a setting: no token names a URL that is fetched.

    While the URL fails, the last keys are used, however old: a provider that is away must not lock
    everybody out. One fetch runs at a time.
    """

    def __init__(self, url: str, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the keys have changed."""
        self._url = url
        self._on_change = on_change
        self.keys: tuple[VerificationKey, ...] = ()
        self.last_error: str | None = "not fetched yet"
        """The problem of the last fetch, if it failed."""
        self._asked_at = -float("inf")
        self._wanted = trio.Event()
        self._done = trio.Event()

    async def find_unknown_key(self) -> bool:
        """Wait for a fetch, because a token names a key that is not there.

        Returns False, at once, if the last such fetch was less than UNKNOWN_KEY_SECONDS ago.
        Callers that come while it is under way wait for the same one.
        """
        now = trio.current_time()
        if not self._wanted.is_set():
            if now - self._asked_at < UNKNOWN_KEY_SECONDS:
                return False
            self._asked_at = now
            self._wanted.set()
        await self._done.wait()
        return True

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Fetch the keys, and again when it is time; started after the first attempt."""
        backoff = Backoff(max_seconds=_MAX_RETRY_SECONDS)
        is_started = False
        async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:
            while True:
                is_wanted, done = self._wanted.is_set(), self._done
                await self._fetch(client)
                if is_wanted:  # if asked meanwhile, the answer may be older than the question
                    self._wanted, self._done = trio.Event(), trio.Event()
                    done.set()
                if not is_started:
                    is_started = True
                    task_status.started()
                if self.last_error is None:
                    backoff.reset()
                delay_seconds = REFRESH_SECONDS if self.last_error is None else backoff.next_delay()
                with trio.move_on_after(delay_seconds):
                    await self._wanted.wait()

    async def _fetch(self, client: httpx2.AsyncClient) -> None:
        try:
            keys = await fetch_keys(client, self._url)
        except (HttpProblem, KeyProblem) as error:
            self._failed(str(error))
        else:
            self.last_error = None
            if keys != self.keys:
                self.keys = keys
                self._on_change()
                log.info("JWK Set fetched", url=self._url, keys=len(keys))

    def _failed(self, problem: str) -> None:
        self.last_error = problem
        log.warning(
            "JWK Set not fetched, using the last keys",
            url=self._url,
            problem=problem,
            keys=len(self.keys),
        )
