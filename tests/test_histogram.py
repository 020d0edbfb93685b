"""Histograms of times."""

import pytest

from streamer.histogram import Histogram
from streamer.protocol.codec import CONVERTER
from streamer.workers.totals import add_up


def test_a_bucket_counts_all_times_up_to_its_bound() -> None:
    """A time that equals a bound belongs to it; one beyond all is in +Inf alone."""
    histogram = Histogram([0.1, 1.0])
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    statistics = histogram.statistics()
    assert statistics.buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert statistics.seconds_total == pytest.approx(7.65)


def test_histograms_of_workers_add_up() -> None:
    """Each bucket and the sum."""
    one, other = Histogram([0.1]), Histogram([0.1])
    one.observe(0.05)
    other.observe(0.5)
    both = add_up([CONVERTER.unstructure(h.statistics()) for h in (one, other)])
    assert both == {"buckets": {"0.1": 1, "+Inf": 2}, "seconds_total": pytest.approx(0.55)}
