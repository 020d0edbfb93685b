"""The resources that this process uses."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

import attrs

_MEMORY_FILE: Final = Path("/proc/self/statm")


@attrs.frozen
class ProcessStatistics:
    """Resources of a process; of several workers, their sum."""

    cpu_seconds_total: float
    """In the program and in the kernel for it, since the start."""
    resident_bytes: int | None
    """Memory in use now; None where the system does not say."""
    max_open_files: int | None
    """The limit of open files; None if there is none."""


def process_statistics() -> ProcessStatistics:
    """Return the resources used until now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessStatistics(
        cpu_seconds_total=usage.ru_utime + usage.ru_stime,
        resident_bytes=_resident_bytes(),
        max_open_files=None if limit == resource.RLIM_INFINITY else limit,
    )


def _resident_bytes() -> int | None:
    try:
        pages = _MEMORY_FILE.read_text().split()[1]
    except OSError:  # not Linux
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
