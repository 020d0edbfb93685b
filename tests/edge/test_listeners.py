"""Connections are taken in bursts, and none is lost.

Covers streamer.listen_error.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
import trio

from streamer.edge.listeners import (
    ACCEPTS_PER_TURN,
    BurstListener,
    bind_sockets,
    close_sockets,
)
from streamer.listen_error import ListenError


class Listening(socket.socket):
    """A listening socket that fails first, as the kernel does when it runs out of something."""

    failures: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        """As `socket.accept`, after the failures."""
        if self.failures:
            code = self.failures.pop()
            raise OSError(code, os.strerror(code))
        return super().accept()


@pytest.fixture
def listening() -> Iterator[Listening]:
    """A socket that listens on loopback."""
    with Listening() as one:
        one.failures = []
        one.bind(("127.0.0.1", 0))
        one.listen(64)
        yield one


async def test_a_burst_is_taken_in_few_turns_and_whoever_comes_later_is_not_forgotten(
    listening: Listening,
) -> None:
    """As many as a turn may take; then others have theirs."""
    listener = BurstListener(listening, lambda: None)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with ExitStack() as stack:
        for _ in range(2 * ACCEPTS_PER_TURN + 1):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            for _ in range(2 * ACCEPTS_PER_TURN + 1):
                stream = await listener.accept()
                stack.callback(stream.socket.close)
            assert turns <= 2 * 3
            late = stack.enter_context(socket.create_connection(listening.getsockname()))
            stream = await listener.accept()
            assert stream.socket.getpeername() == late.getsockname()
            stack.callback(stream.socket.close)
            nursery.cancel_scope.cancel()
    await listener.aclose()


async def test_a_connection_that_has_gone_is_passed_over(listening: Listening) -> None:
    """An error of one connection says nothing of the next."""
    async with BurstListener(listening, lambda: None) as listener:
        with socket.create_connection(listening.getsockname()):
            listening.failures = [errno.ECONNABORTED]
            await (await listener.accept()).aclose()


async def test_without_descriptors_a_connection_is_closed_at_once_and_the_next_is_accepted(
    listening: Listening,
) -> None:
    """The client learns it now, rather than wait in the backlog, and each is counted."""
    turned_away: list[int] = []
    async with BurstListener(listening, lambda: turned_away.append(1)) as listener:
        with socket.create_connection(listening.getsockname()) as refused:
            listening.failures = [errno.EMFILE]
            with socket.create_connection(listening.getsockname()) as served:
                stream = await listener.accept()
                assert stream.socket.getpeername() == served.getsockname()
                await stream.aclose()
            assert refused.recv(1) == b""
    assert len(turned_away) == 1


async def test_an_address_in_use_is_named_with_its_settings() -> None:
    """The error says which address it is, and which settings say so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}: .*in use") as caught:
            await bind_sockets("127.0.0.1", port, shared=False)
    assert caught.value.settings == ("host", "port")


async def test_several_hosts_get_one_port() -> None:
    """Names and addresses are separated by commas; a free port is one that all of them have."""
    bound = await bind_sockets("127.0.0.1, 127.0.0.2", 0, shared=False)
    try:
        places = [one.getsockname() for one in bound]
        assert [address for address, _ in places] == ["127.0.0.1", "127.0.0.2"]
        assert len({port for _, port in places}) == 1
    finally:
        close_sockets(bound)


async def test_an_address_that_is_named_twice_is_bound_once() -> None:
    """Hosts may share addresses; IPv6 may be written as in a URL."""
    bound = await bind_sockets("127.0.0.1, [::1], 127.0.0.1, ::1", 0, shared=False)
    close_sockets(bound)
    assert len(bound) == 2


async def test_every_address_of_ipv6_includes_those_of_ipv4() -> None:
    """`::` alone takes clients of both families, `::1` those of IPv6 only."""
    for host, both in (("::", True), ("::1", False)):
        (one,) = bound = await bind_sockets(host, 0, shared=False)
        try:
            one.listen()
            port = one.getsockname()[1]
            with socket.create_connection(("::1", port)):
                pass
            if both:
                with socket.create_connection(("127.0.0.1", port)):
                    pass
            else:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port))
        finally:
            close_sockets(bound)


async def test_an_address_that_the_machine_does_not_have_is_left_out_of_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name is listened on at those of its addresses that there are; alone, one is an error."""

    async def resolve(*_arguments: object, **_options: object) -> Sequence[object]:
        await trio.lowlevel.checkpoint()
        stream = socket.SOCK_STREAM
        return [
            (socket.AF_INET, stream, 6, "", ("192.0.2.1", 0)),
            (socket.AF_INET, stream, 6, "", ("127.0.0.1", 0)),
        ][: 1 + with_loopback]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    with_loopback = True
    (one,) = await bind_sockets("name", 0, shared=False)
    with one:
        assert one.getsockname()[0] == "127.0.0.1"
    with_loopback = False
    with pytest.raises(ListenError, match=r"192\.0\.2\.1"):
        await bind_sockets("name", 0, shared=False)
