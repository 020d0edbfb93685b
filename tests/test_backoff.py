"""Delays between attempts."""

from streamer.backoff import Backoff


def test_the_delay_is_jittered_in_full_below_a_bound_that_doubles() -> None:
    """Delays are spread over everything between 0 and a bound that doubles up to its maximum."""
    ladders = []
    for _ in range(1000):
        backoff = Backoff(first_seconds=1.0, max_seconds=30.0)
        ladders.append([backoff.next_delay() for _ in range(7)])
    for delays, bound in zip(zip(*ladders, strict=True), [1, 2, 4, 8, 16, 30, 30], strict=True):
        assert 0 <= min(delays) < bound / 10
        assert bound * 0.9 < max(delays) <= bound


def test_the_bounds_double_up_to_the_maximum() -> None:
    """Without jitter the bounds themselves are the delays."""
    backoff = Backoff(first_seconds=0.5, max_seconds=3.0)
    assert [backoff.next_bound() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_thousands_of_failures_overflow_nothing_and_a_reset_starts_over() -> None:
    """The bound stays at its maximum however often it is asked for, until the reset."""
    backoff = Backoff(first_seconds=1.0, max_seconds=30.0)
    assert all(backoff.next_delay() <= 30 for _ in range(2000))
    backoff.reset()
    assert backoff.next_delay() <= 1
