"""The resources of this process."""

from streamer.process_usage import process_statistics


def test_cpu_time_and_memory_are_those_of_this_process() -> None:
    """CPU time only grows, and a Python process takes more than a megabyte."""
    before, after = process_statistics(), process_statistics()
    assert 0 < before.cpu_seconds_total <= after.cpu_seconds_total
    assert before.resident_bytes is None or before.resident_bytes > 1_000_000
    assert before.max_open_files is None or before.max_open_files > 0
