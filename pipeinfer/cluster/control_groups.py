"""Nodes of so many cores on one machine: control groups of Linux, whose processes together get no more. They are made
for a while and removed again. It takes a user who may make them, such as root; groups of both versions do."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count as count_up
from pathlib import Path

from pipeinfer.errors import LaunchError
from pipeinfer.files import system_text
from pipeinfer.runtime.processor_quota import ProcessorGroup, processor_groups

PERIOD_US, LEAST_QUOTA_US = 10_000, 1_000
"""In each period a group's processes have their share. The kernel's own default is ten times as long: a rank that
computes for some milliseconds and then waits for others would be as fast on such a node as on a whole core."""

EMPTY_S = 10.0
"""How long a group is waited for that still holds a process which has ended."""

NODE = re.compile(r"pipeinfer-\d+-\d+")
"""The names of nodes, which a service's own group, say pipeinfer-serve.service, has not."""

_numbers = count_up()


@contextmanager
def limited_nodes(count: int, cores: float, root: Path = Path("/")) -> Iterator[list[Path]]:
    """That many groups of at most `cores`, into which to `move` processes. Who is left in one goes back to this
    process's group. Raises LaunchError where they cannot be made."""
    own = _own_group(root)
    # This process may be on such a node itself: others are beside it, and have none of its cores.
    parent = next(group for group in (own.parent_of_limited, *own.parent_of_limited.parents) if not _is_node(group))
    made: list[Path] = []
    try:
        for _ in range(count):
            made.append(parent / f"pipeinfer-{os.getpid()}-{next(_numbers)}")
            made[-1].mkdir()
            _limit(made[-1], cores, unified=own.unified)
    except OSError as problem:
        _remove(made, own.folder)
        raise LaunchError(f"nodes of {cores:g} cores are control groups, and none can be made in"
                          f" {parent} ({problem.strerror}): it takes Linux and a user who may, such as"
                          " root on the host itself") from problem  # fmt: skip
    try:
        yield made
    finally:
        _remove(made, own.folder)


def move(process: int, group: Path) -> None:
    """Put a process with all its threads into a group. Raises OSError."""
    (group / "cgroup.procs").write_text(str(process))


def _is_node(group: Path) -> bool:
    return NODE.fullmatch(group.name) is not None


def _own_group(root: Path) -> ProcessorGroup:
    """That of version 1 where there is one: processors then are not the unified hierarchy's. Raises LaunchError."""
    found = sorted(processor_groups(root), key=lambda group: group.unified)
    if not found:
        raise LaunchError("nodes of less than a machine's cores are control groups, which this system does not have")
    return found[0]


def _limit(group: Path, cores: float, *, unified: bool) -> None:
    quota = max(LEAST_QUOTA_US, round(cores * PERIOD_US))
    period = round(quota / cores)
    if unified:
        (group / "cpu.max").write_text(f"{quota} {period}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(period))
        (group / "cpu.cfs_quota_us").write_text(str(quota))


def _remove(groups: list[Path], home: Path) -> None:
    for group in filter(Path.is_dir, groups):
        deadline = time.monotonic() + EMPTY_S
        while not _removed(group, home):
            if time.monotonic() > deadline:
                raise LaunchError(f"the control group {group} still has processes: end them, then remove it by `rmdir`")
            time.sleep(0.01)


def _removed(group: Path, home: Path) -> bool:
    """Whether it was empty, once who is left in it was sent home."""
    for process in system_text(group / "cgroup.procs").split():
        with suppress(ProcessLookupError):  # It has ended meanwhile.
            move(int(process), home)
    try:
        group.rmdir()
    except OSError:
        return False
    return True
