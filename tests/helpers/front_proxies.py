"""Real proxies in front of a server: nginx and Caddy, with the configurations of docs/examples."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.helpers.redis_server import random_ports
from tests.helpers.timing import POLL_SECONDS

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "proxy"


def find(program: str) -> Path | None:
    """The program, which the nox session unpacks where it is not installed; None without it."""
    # The usual PATH of a user lacks the directory of nginx.
    found = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    return None if found is None else Path(found)


def find_stream_module() -> Path | None:
    """The module of nginx that forwards connections; None without it."""
    nginx = find("nginx")
    if nginx is None:
        return None
    # An unpacked nginx has it in the tree beside the command that starts it.
    for root in nginx.parent.parent / "root", Path("/"):
        module = root / "usr/lib/nginx/modules/ngx_stream_module.so"
        if module.exists():
            return module
    return None


NGINX: Final = find("nginx")
STREAM_MODULE: Final = find_stream_module()
CADDY: Final = find("caddy")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx")
needs_stream_module = pytest.mark.skipif(
    STREAM_MODULE is None, reason="there is no nginx with a stream module (libnginx-mod-stream)"
)
needs_caddy = pytest.mark.skipif(CADDY is None, reason="there is no Caddy")


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    for port in random_ports():
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no port is free")


def example(name: str, changes: Mapping[str, object]) -> str:
    """A configuration of docs/examples with the addresses and paths of a test."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, str(new))
    return text


@asynccontextmanager
async def nginx(
    directory: Path, port: int, *, http: str = "", top: str = ""
) -> AsyncIterator[None]:
    """Run nginx with a configuration for its http block or for the top level."""
    paths = "\n".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    log = directory / "error.log"
    configuration = directory / "main.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {directory}/nginx.pid; error_log {log} notice;\n"
        f"{top}\nevents {{}}\nhttp {{ access_log off;\n{paths}\n{http} }}\n"
    )
    assert NGINX is not None
    async with _running(port, NGINX, "-p", directory, "-c", configuration, "-e", log):
        yield


@asynccontextmanager
async def caddy(directory: Path, port: int, site: str) -> AsyncIterator[None]:
    """Run Caddy with a site, without the listeners that it would have besides."""
    configuration = directory / "Caddyfile"
    configuration.write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{site}")
    assert CADDY is not None
    command = (CADDY, "run", "--adapter", "caddyfile", "--config", configuration)
    async with _running(port, *command, environment={"HOME": str(directory)}):
        yield


@asynccontextmanager
async def _running(
    port: int, *command: str | Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    process = await trio.lowlevel.open_process(
        list(map(str, command)),
        env=os.environ | (environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                await trio.sleep(POLL_SECONDS)
            else:
                await trio.aclose_forcefully(stream)
                break
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
