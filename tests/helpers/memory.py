"""The memory of another process."""

from __future__ import annotations

from pathlib import Path


def memory_bytes(pid: int) -> int:
    """The memory that a process has for itself, and its part of what it shares (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("Pss:"))
    return int(kibibytes) * 1024
