"""How much memory is left on this host for a model."""

import os
import re
from pathlib import Path

from pipeinfer.files import system_text


def free_bytes(root: Path = Path("/")) -> int:
    """What the system can still give to this process: what is available on the host, or left of its control group's
    limit where that is less. Below `root` lie the system's own files."""
    text = system_text(root / "proc/meminfo")
    available = re.search(r"MemAvailable:\s+(\d+) kB", text)
    host = int(available[1]) * 1024 if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([host, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> list[int]:
    """Of the process's control group (version 2) and the ones around it, as batch systems and containers set them."""
    found = re.search(r"^0::/(.*)$", system_text(root / "proc/self/cgroup"), re.MULTILINE)
    top = root / "sys/fs/cgroup"
    group = top / (found[1] if found else "")
    left = []
    while True:
        limit, used = system_text(group / "memory.max").strip(), system_text(group / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            cache = re.search(r"^inactive_file (\d+)$", system_text(group / "memory.stat"), re.MULTILINE)
            left.append(max(0, int(limit) - int(used) + (int(cache[1]) if cache else 0)))
        if group == top:
            return left
        group = group.parent
