"""Memory that sockets take in the kernel, which belongs to no process."""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@attrs.frozen
class KernelMemory:
    """The memory that the kernel of this machine uses, in bytes: subtract an earlier state.

    Other programs use it, too: on a machine that is not idle the difference has their part.
    """

    slab_bytes: int
    """Its objects: sockets, files, entries of epoll, small buffers."""
    buffers_bytes: int
    """Data in TCP sockets, sent or received."""

    @classmethod
    def now(cls) -> KernelMemory:
        """Return the present state."""
        kilobytes = {
            name: int(value)
            for name, value in re.findall(
                r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE
            )
        }
        pages = re.search(
            r"^TCP: .* mem (\d+)$", Path("/proc/net/sockstat").read_text(), re.MULTILINE
        )
        return cls(
            1024 * kilobytes["Slab"],
            PAGE_BYTES * int(pages[1]) if pages else 0,
        )

    def sockets_bytes(self, before: KernelMemory) -> int:
        """Return how much more there is for sockets."""
        return self.slab_bytes - before.slab_bytes + self.buffers_bytes - before.buffers_bytes


def resident_bytes(pids: list[int]) -> int:
    """Return the proportional set size of some processes and their threads."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
        total += 1024 * int(found[1]) if found else 0
    return total
