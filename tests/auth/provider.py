"""An identity provider: a real HTTP server with a JWK Set and a token endpoint."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs

import attrs
import trustme
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from streamer.auth.keys import public_jwk
from tests.auth.tokens import signed

PATH: Final = "/jwks.json"
TOKEN_PATH: Final = "/token"


NO_ANSWER: Final = 0
"""A status for closing the connection instead."""


class Key:
    """A private key of the provider, with the name that its JWK Set gives it."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.private = generate_private_key(SECP256R1())

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half, as the JWK Set has it."""
        return public_jwk(self.private.public_key()) | {"kid": self.key_id}

    def sign(self, **claims: Any) -> str:
        """A token of this key."""
        return signed(self.private, "ES256", key_id=self.key_id, **claims)


@attrs.define
class Answer:
    """The next answers at one path."""

    status: int
    body: bytes
    is_endless: bool = False
    """Whether the body is sent again and again, until the client closes the connection."""


@attrs.define
class Request:
    """A request that has arrived."""

    path: str
    authorization: str | None
    form: dict[str, list[str]]


@attrs.define
class Provider:
    """The answers that it gives, and the requests that it has had."""

    origin: str
    answers: dict[str, Answer] = attrs.field(factory=dict)
    requests: list[Request] = attrs.field(factory=list)

    @property
    def jwks_url(self) -> str:
        """The URL of the JWK Set."""
        return self.origin + PATH

    @property
    def token_url(self) -> str:
        """The URL of the token endpoint."""
        return self.origin + TOKEN_PATH

    def publish(self, *keys: Key) -> None:
        """Serve these keys from now on."""
        self.publish_set([key.jwk for key in keys])

    def publish_set(self, keys: list[Any]) -> None:
        """Serve a JWK Set."""
        self.answer(PATH, {"keys": keys})

    def answer(self, path: str, document: object, *, status: int = 200) -> None:
        """Answer with a JSON document."""
        self.answers[path] = Answer(status, json.dumps(document).encode())

    @property
    def fetches(self) -> int:
        """Requests for the JWK Set until now."""
        return sum(request.path == PATH for request in self.requests)


@contextmanager
def running_provider(authority: trustme.CA | None = None) -> Iterator[Provider]:
    """Run a provider in threads, on HTTPS if it gets a certificate from an authority."""
    provider = Provider("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["content-length"])))

        def _answer(self, body: bytes) -> None:
            provider.requests.append(
                Request(self.path, self.headers["authorization"], parse_qs(body.decode()))
            )
            answer = provider.answers.get(self.path, Answer(404, b""))
            if answer.status == NO_ANSWER:
                return
            self.send_response(answer.status)
            if not answer.is_endless:
                self.send_header("content-length", str(len(answer.body)))
            if 300 <= answer.status < 400:
                self.send_header("location", answer.body.decode())
            self.end_headers()
            self.wfile.write(answer.body)
            with suppress(OSError):
                while answer.is_endless:
                    self.wfile.write(answer.body)

        def log_message(self, *arguments: object) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scheme = "http"
    if authority is not None:
        scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    provider.origin = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
