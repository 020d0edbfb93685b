"""The memory of another process."""

from __future__ import annotations

from pathlib import Path


def memory_bytes(pid: int) -> int:
    """The memory that a process has allocated.

    Without the files that it has mapped: its part of those changes with every other program that
    uses the same ones, by megabytes for a Python.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("Pss_Anon:"))
    return int(kibibytes) * 1024
