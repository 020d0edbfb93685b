"""How busy a page is: its tasks and frames, as Chromium measures them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Final

import attrs
from playwright.sync_api import Page

LONG_TASK_MS: Final = 50
"""A browser reports tasks that last longer (W3C, Long Tasks API)."""
FRAME_MS: Final = 1000 / 60

_WATCH: Final = """() => {
  const seen = { tasks: [], frames: [] };
  const observer = new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) seen.tasks.push(duration);
  });
  observer.observe({ type: "longtask" });
  const begun = performance.now();
  let last = begun;
  const note = (now) => {
    seen.frames.push(now - last);
    last = now;
    if (window.seen === seen) requestAnimationFrame(note);
  };
  requestAnimationFrame(note);
  window.seen = seen;
  window.endOfSeen = () => {
    window.seen = null;
    return { ...seen, elapsed: performance.now() - begun };
  };
}"""


@attrs.frozen
class Activity:
    """The work of a page's thread over some time, in ms."""

    elapsed: float
    tasks: Sequence[float]
    """The time that each took of the processor, the longest first."""
    long_tasks: Sequence[float]
    """Those that the page is notified of: by the clock, so that other programs count, too."""
    frames: Sequence[float]
    """Between each frame and the one before, the shortest first."""

    @property
    def frames_dropped(self) -> float:
        """The share of frames that are missing on a screen of 60 Hz."""
        return max(0.0, 1 - len(self.frames) * FRAME_MS / self.elapsed)

    def __str__(self) -> str:
        frames = self.frames
        middle, late = frames[len(frames) // 2], frames[len(frames) * 99 // 100]
        return (
            f"the page's thread worked {sum(self.tasks) / self.elapsed:.0%} of the time; tasks: "
            f"the longest {self.tasks[0]:.1f} ms of the processor, {len(self.long_tasks)} longer "
            f"than {LONG_TASK_MS} ms by the clock, at most {max(self.long_tasks, default=0):.0f}\n"
            f"{len(frames) * 1000 / self.elapsed:.1f} frames/s, {self.frames_dropped:.1%} dropped; "
            f"apart by p50 {middle:.1f}, p99 {late:.1f}, at most {frames[-1]:.1f} ms; "
            f"load of the machine {os.getloadavg()[0]:.1f}"
        )

    def problems(self) -> list[str]:
        """Tasks that hold up the page by themselves."""
        long = [round(task) for task in self.tasks if task > LONG_TASK_MS]
        return [f"tasks of {long} ms of the processor"] if long else []


def begin(page: Page) -> None:
    """Begin to watch a page."""
    assert page.context.browser is not None
    page.context.browser.start_tracing(page=page, categories=["toplevel"])
    page.evaluate(_WATCH)


def end(page: Page) -> Activity:
    """Return the page's activity since `begin`."""
    seen = page.evaluate("window.endOfSeen()")
    assert page.context.browser is not None
    events = json.loads(page.context.browser.stop_tracing())["traceEvents"]
    return Activity(
        elapsed=seen["elapsed"],
        tasks=sorted(_tasks(events), reverse=True),
        long_tasks=seen["tasks"],
        frames=sorted(seen["frames"]),
    )


def _tasks(events: Sequence[dict[str, Any]]) -> list[float]:
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        event["tdur"] / 1000
        for event in events
        if event["name"].endswith("RunTask")
        and "tdur" in event
        and (event["pid"], event["tid"]) in threads
    ]
