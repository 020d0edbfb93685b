"""The order of findings."""

from streamer.checks.finding import Level, fault, ok, warning, worst


def test_the_worst_finding_counts() -> None:
    """A fault matters more than a warning, whatever their order."""
    good, notable, bad = ok("a", ""), warning("b", ""), fault("c", "")
    assert worst([]) is Level.OK
    assert worst([good, notable]) is Level.WARNING
    assert worst([bad, notable, good]) is Level.FAULT
