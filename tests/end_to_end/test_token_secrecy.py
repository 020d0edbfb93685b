"""No token is in the log of a server, whatever its place and whatever is wrong with it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import trio

from tests.auth.tokens import SECRET, secret_file
from tests.faults.processes import ServerProcess
from tests.helpers.clients import RawClient
from tests.helpers.events import fetched
from tests.helpers.identities import token
from tests.helpers.operator import KEY, key_file, operator_of
from tests.helpers.timing import DEADLINE_SECONDS


def tokens() -> list[str]:
    """A good one, and those that are refused, each different from all others."""
    now = int(time.time())
    good = token()
    return [
        good,
        token("late", exp=now - 3600),
        token("early", nbf=now + 3600),
        good[:-4] + "AAAA",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJub25lIn0.",
        "not-a-token-at-all-but-a-secret-nevertheless",
        "x" * 9000,
    ]


async def present(port: int, path: str, header: str, message: str = "") -> None:
    """Open a WebSocket, send a message, and leave."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        client = RawClient(stream)
        try:
            await client.open(path, f"{header}\r\n".encode() if header else b"")
            await client.response()
            if message:
                await client.send_frame(0x81, message.encode())
                await client.send(type="ping")
            await client.send_frame(0x88, b"\x03\xe8")
            await client.rest()
        except (trio.BrokenResourceError, EOFError):
            pass  # refused before it was read, as a header that is too long is


async def ask_operator(port: int, text: str) -> None:
    """Give a token to the operator's API, where it belongs and where it does not."""
    async with operator_of(f"http://127.0.0.1:{port}") as operator:
        for name, body in (
            ("explain", {"topic": "stock:A", "token": text}),
            ("explain", {"topic": text}),
            ("publish", {"topic": "user:42", "message": {"type": "alert", "token": text}}),
            ("disconnect", {"session": text}),
            ("info", {text: 1}),
        ):
            await operator.post(name, **body)
        await operator.client.post(f"/v1/api/{text}")
        answer = await operator.client.post(
            "/v1/api/info", headers={"Authorization": f"Bearer {text}"}
        )
        assert answer.status_code == 403


async def test_no_token_is_in_the_log(tmp_path: Path) -> None:
    """With the level debug; each token in each place, also where it does not belong."""
    arguments = (
        *("--memory", "--log-level", "debug", "--auth", "optional"),
        *("--auth-secret-file", str(secret_file(tmp_path))),
        *("--auth-cookie", "session", "--allowed-origins", "https://page.example"),
        *("--api-key-file", str(key_file(tmp_path))),
    )
    path = "/v1/ws"
    presented = tokens()
    with trio.fail_after(DEADLINE_SECONDS):
        async with ServerProcess(tmp_path, *arguments) as server:
            address = f"http://127.0.0.1:{server.port}"
            for text in presented:
                for header in (
                    f"Authorization: Bearer {text}",
                    f"Authorization: Basic {text}",
                    f"Sec-WebSocket-Protocol: streamer.v1, bearer.{text}",
                    f"Cookie: session={text}\r\nOrigin: https://page.example",
                    f"Origin: https://{text}.example",
                    f"User-Agent: {text}",
                ):
                    await present(server.port, path, header)
                for query in (f"token={text}", f"session_id={text}", f"access_token={text}"):
                    await present(server.port, f"{path}?{query}", "")
                await present(server.port, f"/{text}", "")
                for message in (
                    '{"type":"authenticate","token":"%s"}',
                    '{"type":"authenticate","token":"%s"',
                    '{"type":"authenticate","token":["%s"]}',
                    '{"type":"refresh_token","refresh_token":"%s"}',
                    '{"type":"reconnect","session_id":"%s","positions":{}}',
                ):
                    await present(server.port, path, "", message % text)
                with suppress(trio.BrokenResourceError, EOFError):  # as above
                    await fetched(address, f"/v1/snapshot?topics=stock:A&token={text}")
            async with trio.open_nursery() as nursery:
                for text in presented:
                    nursery.start_soon(ask_operator, server.http_port, text)
    log = server.log
    assert "serving" in log
    assert SECRET not in log
    assert KEY not in log
    for text in presented:
        assert text not in log
        # Neither cut: no signature, and no long part.
        assert text[-40:] not in log
        assert text[:40].removeprefix("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.") not in log
