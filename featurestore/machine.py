"""What this machine gives the process."""

from __future__ import annotations

import functools
import math
import os
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # version 2
OWN = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return how many processor cores this process may use, which may be fewer than the machine has.

    It may be bound to some cores, or a container may give it only a share of their time.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(bound, _quota()))


@functools.cache
def _quota() -> float:
    """Return how many cores' time the process's control groups give it; infinity without a limit (cgroups(7))."""
    quota = math.inf
    with suppress(OSError, ValueError):
        own = [line[3:] for line in OWN.read_text().splitlines() if line.startswith("0::")]
        group = CGROUPS / "".join(own[:1]).lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # the root has no limit; in a container, the path may lie outside
                allowed, period = (folder / "cpu.max").read_text().split()
                quota = min(quota, math.inf if allowed == "max" else int(allowed) / int(period))
    return quota
