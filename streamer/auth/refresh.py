"""New access tokens for refresh tokens, from the token endpoint of an identity provider."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx2
import orjson
import structlog
import trio

from streamer.auth.claims import MAX_TOKEN_CHARACTERS
from streamer.auth.errors import invalid
from streamer.auth.requests import TIMEOUT_SECONDS, HttpProblem, request_json
from streamer.bounded_log import BoundedLog
from streamer.setting_rules import SettingError

_MAX_ANSWER_BYTES: Final = 65_536
"""An access, a refresh and an ID token, with room to spare."""

_MAX_REQUESTS: Final = 20
"""Requests at a time, so that clients cannot make this server flood its provider; more wait."""

_REFUSALS: Final = {httpx2.codes.BAD_REQUEST, httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}
"""Statuses that refuse the refresh token; others, as 404 or 429, say nothing about it."""

_ERRORS_OF_THIS_SERVER: Final = {"invalid_client", "unauthorized_client", "invalid_scope"}
"""Errors of RFC 6749, 5.2, that are not about the refresh token, such as a wrong secret."""

log = structlog.get_logger()


class TokenEndpoint:
    """The token endpoint of an OAuth 2 server (RFC 6749, section 6)."""

    def __init__(self, url: str, client_id: str | None, client_secret_file: Path | None) -> None:
        """Read the secret. Raises SettingError if its file cannot be used."""
        self._url = url
        self._client_id = client_id
        self._secret_file = client_secret_file
        self._secret = None if client_secret_file is None else read_secret(client_secret_file)
        self._limiter = trio.CapacityLimiter(_MAX_REQUESTS)
        # Made once: reading the authorities takes 30 ms, in which no client would be served.
        self._tls = httpx2.create_ssl_context()
        self._log = BoundedLog(log.warning)

    async def access_token(self, refresh_token: str) -> str:
        """Return a new access token, not verified yet. Raises TokenError."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        auth = None
        if self._client_id is not None:
            secret = await self._current_secret()
            if secret is None:
                form["client_id"] = self._client_id
            else:
                auth = httpx2.BasicAuth(self._client_id, secret)
        try:
            status, body = await self._post(form, auth)
        except HttpProblem as error:
            self._log(
                "unavailable", "token endpoint unavailable", url=self._url, problem=str(error)
            )
            raise invalid("tokens cannot be refreshed now; try again", is_final=False) from None
        if status == httpx2.codes.OK:
            return self._token_of(body)
        code = _error_of(body)
        self._log("refused", "token endpoint refused", url=self._url, status=status, error=code)
        if code not in _ERRORS_OF_THIS_SERVER and status in _REFUSALS:
            raise invalid("the identity provider does not accept the refresh token")
        raise invalid("tokens cannot be refreshed now; try again", is_final=False)

    async def _current_secret(self) -> str | None:
        """Read the secret again, so that it can be rotated; the last one that could be read.

        Refreshes are rare, and each waits for the provider: a task that watches the file would
        gain nothing.
        """
        if self._secret_file is not None:
            try:
                self._secret = await trio.to_thread.run_sync(read_secret, self._secret_file)
            except SettingError as error:
                self._log("secret", "secret unusable, keeping the last one", problem=str(error))
        return self._secret

    async def _post(self, form: dict[str, str], auth: httpx2.BasicAuth | None) -> tuple[int, bytes]:
        # A client for each request: refreshes are minutes apart, and no task has to own the pool.
        async with (
            self._limiter,
            httpx2.AsyncClient(
                auth=auth,
                verify=self._tls,
                timeout=TIMEOUT_SECONDS,
                follow_redirects=False,
            ) as client,
        ):
            return await request_json(
                client, "POST", self._url, max_bytes=_MAX_ANSWER_BYTES, form=form
            )

    def _token_of(self, body: bytes) -> str:
        token = _member(body, "access_token")
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARACTERS:
            self._log("answer", "token endpoint answered without an access token", url=self._url)
            raise invalid("the identity provider answered without an access token", is_final=False)
        return token


def _error_of(body: bytes) -> str | None:
    """Return the error code of an answer (RFC 6749, 5.2), if it has one."""
    error = _member(body, "error")
    return error[:64] if isinstance(error, str) else None


def _member(body: bytes, name: str) -> object:
    """Return a member of a JSON object; None if there is none, or the body is no such object."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return answer.get(name) if isinstance(answer, dict) else None


def read_secret(path: Path) -> str:
    """Return the secret of this server as a client. Raises SettingError."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingError(
            "auth_client_secret_file", f"{path} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise SettingError("auth_client_secret_file", f"{path} is not UTF-8") from None
    if not secret or "\n" in secret:
        raise SettingError("auth_client_secret_file", f"{path} has not exactly one line")
    return secret
