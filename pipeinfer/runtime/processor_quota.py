"""How much of the host's processors this process may use: who looks for a message instead of sleeping pays with it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeinfer.files import system_text

SPIN_S = 50e-6
"""Waking up costs more than a hop that comes this soon."""


def spinning_s(root: Path = Path("/")) -> float:
    """How long a rank may look for a message before it sleeps. Nothing where there is no more than one core to use:
    under a quota the time is taken from computing, and on a single core from whoever would send."""
    return SPIN_S if usable_cores(root) > 1 else 0.0


def usable_cores(root: Path = Path("/")) -> float:
    """Those of the host that this process is bound to, or what the quotas of its control groups come to, where that is
    less. Below `root` lie the system's own files; groups of both versions are read."""
    return min([float(bound_cores()), *_quotas(root)])


def bound_cores() -> int:
    """Cores of the host that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessorGroup(NamedTuple):
    """A control group that this process is in and that may limit its processors; below `top` lie all of its kind.
    `unified`: of version 2."""

    top: Path
    folder: Path
    unified: bool

    @property
    def around(self) -> list[Path]:
        """It and the groups around it."""
        return [self.folder, *(parent for parent in self.folder.parents if parent.is_relative_to(self.top))]

    @property
    def parent_of_limited(self) -> Path:
        """Where a group with a quota can be made: of version 2 the nearest one that gives its groups the controller."""
        if not self.unified:
            return self.folder
        giving = (group for group in self.around if "cpu" in system_text(group / "cgroup.subtree_control").split())
        return next(giving, self.folder)


def processor_groups(root: Path = Path("/")) -> Iterator[ProcessorGroup]:
    """Those of this process, one for each version in use."""
    top = root / "sys/fs/cgroup"
    for controllers, path in re.findall(r"^\d+:([^:\n]*):/(.*)$", system_text(root / "proc/self/cgroup"), re.MULTILINE):
        if not controllers:
            yield ProcessorGroup(top, top / path, unified=True)
        elif "cpu" in controllers.split(","):
            yield ProcessorGroup(top / "cpu", top / "cpu" / path, unified=False)


def _quotas(root: Path) -> Iterator[float]:
    """In cores: of the process's groups and the ones around them."""
    for own in processor_groups(root):
        for group in own.around:
            if own.unified:
                yield from _cores(*system_text(group / "cpu.max").split()[:2])
            else:
                yield from _cores(system_text(group / "cpu.cfs_quota_us"), system_text(group / "cpu.cfs_period_us"))


def _cores(quota: str = "", period: str = "") -> list[float]:
    """None where it says max, -1 or nothing."""
    quota, period = quota.strip(), period.strip()
    return [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() and int(period) else []
