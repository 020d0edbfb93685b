"""The statistics of several workers, added up."""

from streamer.workers.totals import add_up


def test_counts_are_added_and_the_longest_times_kept() -> None:
    """Counts are added, and of times the largest is taken."""
    first = {"sent": 1, "dropped": {"slow": 2}, "longest": 0.5, "seconds_total": 1.0}
    second = {"sent": 10, "dropped": {"gone": 3}, "longest": 0.25, "seconds_total": 2.0}
    assert add_up([first, second]) == {
        "sent": 11,
        "dropped": {"slow": 2, "gone": 3},
        "longest": 0.5,
        "seconds_total": 3.0,
    }


def test_what_is_no_number_stands_for_all_workers() -> None:
    """Booleans are true where all are; the earliest start and an error of any are shown."""
    first = {"ready": True, "started_at": "2024-02-01", "last_error": None, "probe": None}
    second = {"ready": False, "started_at": "2024-01-01", "last_error": "gone", "probe": None}
    assert add_up([first, second]) == {
        "ready": False,
        "started_at": "2024-01-01",
        "last_error": "gone",
        "probe": None,
    }


def test_without_an_answer_there_is_nothing_to_tell() -> None:
    """Without workers there are no statistics."""
    assert add_up([]) == {}
