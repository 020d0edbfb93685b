"""When the client tries again."""

from streamer.client import Backoff


def test_the_delay_is_jittered_in_full_below_a_bound_that_doubles() -> None:
    """Clients that lost a server together come back apart: not one after another, nor late."""
    ladders = []
    for _ in range(1000):
        backoff = Backoff(first_seconds=1.0, max_seconds=30.0)
        ladders.append([backoff.next_delay() for _ in range(7)])
    for delays, bound in zip(zip(*ladders, strict=True), [1, 2, 4, 8, 16, 30, 30], strict=True):
        assert 0 <= min(delays) < bound / 10
        assert bound * 0.9 < max(delays) <= bound


def test_a_very_long_absence_is_no_overflow_and_success_resets_it() -> None:
    """Two to the power of the failures would be, after some thousand of them."""
    backoff = Backoff(first_seconds=1.0, max_seconds=30.0)
    assert all(backoff.next_delay() <= 30 for _ in range(2000))
    backoff.reset()
    assert backoff.next_delay() <= 1
