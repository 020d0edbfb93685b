"""The ends of tokens: notices spread over time, the grace, and the close, on a virtual clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from streamer.auth.identity import Identity
from streamer.edge.token_expiry import TokenExpiry, lead_seconds
from streamer.protocol import messages
from streamer.protocol.errors import CloseReason

START = 1_700_000_000.0
GRACE_SECONDS = 25.0
TIMEOUT_SECONDS = 10.0


class Session:
    """A session that records what is done to it, and when."""

    def __init__(self, name: str = "s") -> None:
        self.session_id = name
        self.is_ending = False
        self.notices: list[Any] = []
        """The time and the message of each."""
        self.closed: Any = None
        """The time, the close code and the code of the error."""

    def send_event(self, message: messages.ServerMessage) -> None:
        """Record a message."""
        self.notices.append((trio.current_time(), message))

    def end(self, reason: CloseReason, farewell: messages.ServerMessage | None = None) -> None:
        """Record the close."""
        assert isinstance(farewell, messages.Error)
        self.closed = (trio.current_time(), reason.code, farewell.code)
        self.is_ending = True


@pytest.fixture(name="expiry")
async def expiry_fixture() -> AsyncIterator[TokenExpiry]:
    """Run the task of an expiry whose clocks go together."""
    began_at = trio.current_time()
    expiry = TokenExpiry(
        grace_seconds=GRACE_SECONDS,
        timeout_seconds=TIMEOUT_SECONDS,
        clock=lambda: START + trio.current_time() - began_at,
        random_part=random.Random(1).random,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expiry.run)
        yield expiry
        nursery.cancel_scope.cancel()


def token(life_seconds: float, *, issued_before_seconds: float = 0.0) -> Identity:
    """The identity of a token of this life, issued before the start."""
    issued_at = START - issued_before_seconds
    return Identity("ann", issued_at + life_seconds, issued_at)


async def test_a_client_is_notified_before_the_end_and_closed_after_the_grace(
    expiry: TokenExpiry, autojump_clock: MockClock
) -> None:
    """With a token of 10 minutes: between 200 s and 60 s before, once, then 25 s after the end."""
    session, began_at = Session(), trio.current_time()
    expiry.watch(session, token(600))
    await trio.sleep(700)
    ((at, notice),) = session.notices
    left = 600 - (at - began_at)
    assert 60 <= left <= 200
    assert notice.expires_in == pytest.approx(left, abs=0.001)
    assert session.closed == (pytest.approx(began_at + 625), 4001, "TOKEN_EXPIRED")


async def test_a_new_token_counts_from_then_on(
    expiry: TokenExpiry, autojump_clock: MockClock
) -> None:
    """Presented after the notice, or in the grace; the old one closes nothing."""
    session = Session()
    expiry.watch(session, token(600))
    await trio.sleep(610)
    assert len(session.notices) == 1
    expiry.watch(session, token(1200, issued_before_seconds=-610))
    await trio.sleep(600)
    assert (len(session.notices), session.closed) == (1, None)
    await trio.sleep(700)
    assert (len(session.notices), session.closed is not None) == (2, True)


async def test_a_token_without_an_end_is_left_alone(
    expiry: TokenExpiry, autojump_clock: MockClock
) -> None:
    """Also where the one before had an end."""
    session = Session()
    expiry.watch(session, token(60))
    expiry.watch(session, Identity("ann"))
    assert expiry.remaining_seconds(Identity("ann")) is None
    await trio.sleep(10_000)
    assert (session.notices, session.closed) == ([], None)


async def test_a_token_that_has_ended_is_noticed_at_once(
    expiry: TokenExpiry, autojump_clock: MockClock
) -> None:
    """It was accepted within the leeway of the clocks; the grace begins now."""
    session, began_at = Session(), trio.current_time()
    expiry.watch(session, token(60, issued_before_seconds=80))
    await trio.sleep(100)
    assert session.notices == [(pytest.approx(began_at), messages.TokenExpiring(0.0))]
    assert session.closed == (pytest.approx(began_at + GRACE_SECONDS), 4001, "TOKEN_EXPIRED")


async def test_a_client_without_a_token_has_some_seconds(
    expiry: TokenExpiry, autojump_clock: MockClock
) -> None:
    """Unless it presents one; a session that has ended is not touched."""
    silent, prompt, gone = Session(), Session(), Session()
    began_at = trio.current_time()
    for session in (silent, prompt, gone):
        expiry.expect(session)
    expiry.watch(prompt, token(3600))
    expiry.forget(gone)
    await trio.sleep(100)
    assert silent.closed == (pytest.approx(began_at + 10), 4001, "INVALID_TOKEN")
    assert (prompt.closed, gone.closed) == (None, None)


@pytest.mark.parametrize("life_seconds", [300, 3600, 86_400])
async def test_ten_thousand_tokens_that_end_together_are_renewed_apart(
    expiry: TokenExpiry, life_seconds: float, autojump_clock: MockClock
) -> None:
    """They end in the same minute; at most 5 % of the notices fall in any second."""
    sessions = [Session(str(number)) for number in range(10_000)]
    for number, session in enumerate(sessions):
        expiry.watch(session, token(life_seconds + number % 60))
    await trio.sleep(life_seconds + 60)
    seconds = Counter(int(at) for session in sessions for at, _ in session.notices)
    assert seconds.total() == 10_000
    assert max(seconds.values()) <= 500


async def test_tokens_presented_late_are_renewed_apart_as_well(
    expiry: TokenExpiry, autojump_clock: MockClock
) -> None:
    """After a restart, 10,000 clients come back with tokens of an hour that have 80 s left."""
    sessions = [Session(str(number)) for number in range(10_000)]
    for session in sessions:
        expiry.watch(session, token(3600, issued_before_seconds=3520))
    await trio.sleep(100)
    seconds = Counter(int(at) for session in sessions for at, _ in session.notices)
    assert seconds.total() == 10_000
    assert max(seconds.values()) <= 500


def test_the_notice_is_between_a_third_and_a_tenth_and_at_most_five_minutes() -> None:
    """Where 5 minutes are less than a tenth of the life, it is spread over the last of them."""
    assert [lead_seconds(600, 600, part) for part in (0.0, 1.0)] == pytest.approx([60, 200])
    assert [lead_seconds(7200, 7200, part) for part in (0.0, 1.0)] == pytest.approx([90, 300])
    assert [lead_seconds(7200, 100, part) for part in (0.0, 1.0)] == pytest.approx([30, 100])


async def test_entries_out_of_date_do_not_pile_up(
    expiry: TokenExpiry, autojump_clock: MockClock
) -> None:
    """A client that presents a token again and again takes no more memory."""
    session = Session()
    for _ in range(5_000):
        expiry.watch(session, token(3600))
    gone = Session()
    for _ in range(5_000):
        expiry.watch(gone, token(3600))
        expiry.forget(gone)
    await trio.lowlevel.checkpoint()
    assert len(expiry._heap) <= 2_010
