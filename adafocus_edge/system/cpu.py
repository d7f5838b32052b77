"""The processor: its features, and how many cores this process may use (affinity, limits, container quotas)."""

from __future__ import annotations

import os
import platform
import re
import threading
from functools import lru_cache
from pathlib import Path

from adafocus_edge.errors import UsageError
from adafocus_edge.system.options import is_whole

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_limits: list[int] = []
"""Limits set by :func:`limit_cores` in this process; the last one applies."""
_own = threading.local()
"""The limit set by :func:`limit_cores_of_thread` in this thread."""


@lru_cache(maxsize=1)
def processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and its feature flags as Linux names them (none on other systems)."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    if Path("/proc/cpuinfo").is_file():
        info = Path("/proc/cpuinfo").read_text()
        if model := re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE):
            name = model.group(1)
        if found := re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE):
            flags = frozenset(found.group(1).split())
    return name, flags


def physical_cores() -> int:
    """Return the number of cores on which this process may run; two hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return len(cores)


def limit_cores(max_cores: int) -> None:
    """Make :func:`usable_cores` return at most ``max_cores`` in this process, one of several on the machine."""
    _limits.append(max_cores)


def limit_cores_of_thread(max_cores: int) -> None:
    """Make :func:`usable_cores` return at most ``max_cores`` in this thread, one of several that share the cores."""
    _own.limit = max_cores


def check_threads(threads: int | None, option: str = "--threads") -> None:
    """Check that an option asks for a thread, and not for more than the machine has processors.

    Raises ``UsageError``.
    """
    processors = os.cpu_count() or 1
    if threads is None:
        return
    if not is_whole(threads) or threads < 1:
        raise UsageError(f"{option} {threads}: must be a whole number, at least 1")
    if threads > processors:
        raise UsageError(f"{option} {threads}: must be at most {processors}, the processors of this machine")


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1.

    That is :func:`physical_cores`, or fewer if a container's CPU quota (cgroup v2), :func:`limit_cores` or
    :func:`limit_cores_of_thread` limits them.
    """
    limits: list[int] = [*_limits[-1:], *([_own.limit] if hasattr(_own, "limit") else [])]
    if min(limits, default=2) <= 1:
        return 1
    cores = min([physical_cores(), *limits])
    if _CGROUP_QUOTA.is_file():
        quota, _, period = _CGROUP_QUOTA.read_text().partition(" ")
        if quota != "max":
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)
