"""SIGHUP replaces the certificate and the log level of real processes, and ends no connection."""

import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import trustme

from streamer.cli.errors import ExitCode
from tests.cli.test_serve import HANDSHAKE, Serving, read_until
from tests.cli.test_workers import Workers
from tests.helpers.clients import client_frame
from tests.helpers.timing import DEADLINE_SECONDS, wait_until


@attrs.define
class Files:
    """The files of a server that it reads again."""

    directory: Path
    authority: trustme.CA = attrs.field(factory=trustme.CA)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options that name them."""
        paths = [str(self.directory / name) for name in ("streamer.toml", "chain.pem", "key.pem")]
        config, chain, key = paths
        return "--config", config, "--tls-certificate", chain, "--tls-key", key

    def write(self, config: str) -> None:
        """Write the configuration, and a certificate of an authority that is new each time."""
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("127.0.0.1")
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (self.directory / "chain.pem").write_bytes(chain)
        issued.private_key_pem.write_to_path(self.directory / "key.pem")
        (self.directory / "streamer.toml").write_text(config)

    @contextmanager
    def connect(self, url: str) -> Iterator[ssl.SSLSocket]:
        """Open a WebSocket that trusts the present authority alone, and read its greeting."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        port = urlsplit(url).port
        with (
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            client.sendall(HANDSHAKE)
            read_until(client, b'"connected"')
            yield client


def ping(client: socket.socket) -> None:
    """Prove that a connection is still served."""
    client.sendall(client_frame(0x81, b'{"type":"ping"}'))
    read_until(client, b'"pong"')


def hang_up(serving: Serving, event: str, count: int) -> None:
    """Send SIGHUP, and wait until an event is in the log as often as that."""
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: serving.log.count(event) == count)


def test_a_hangup_reloads_and_ends_nothing(tmp_path: Path) -> None:
    """A certificate and a level; then a configuration that is broken, which changes nothing."""
    files = Files(tmp_path)
    files.write('log_level = "warning"')
    with Serving(tmp_path, "--memory", *files.arguments) as serving:
        check_reload(serving, files)


def check_reload(serving: Serving, files: Files) -> None:
    """Change the files of a running server, and look at its connections and its log."""
    url, _http = serving.addresses()
    with files.connect(url) as old:
        files.write('log_level = "info"')
        hang_up(serving, "log_level=info", 1)
        with files.connect(url) as new:
            files.write('log_level = "loud"')
            hang_up(serving, "configuration not reloaded", 1)
            ping(new)
        wait_until(lambda: serving.log.count("log_level=info") == 2)
        with files.connect(url):
            ping(old)
            serving.process.send_signal(signal.SIGTERM)
            read_until(old, b'"server_shutdown"')
    serving.ends_with(ExitCode.OK)
    assert "one of debug, info, warning, error, not 'loud'" in serving.log


def test_a_hangup_reaches_all_workers(tmp_path: Path, redis_url: str) -> None:
    """Each takes up the certificate and the level, and its clients notice nothing."""
    files = Files(tmp_path)
    files.write('log_level = "warning"')
    with Workers(tmp_path, "--redis", redis_url, *files.arguments) as serving:
        url = serving.started()
        with files.connect(url) as old:
            files.write('log_level = "info"')
            hang_up(serving, "certificate reloaded", 2)
            for _ in range(4):
                with files.connect(url) as new:
                    ping(new)
            ping(old)
