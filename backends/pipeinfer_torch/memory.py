"""Whether a stage fits, asked before loading: a process that fills the memory is killed without a word."""

import re
from pathlib import Path

import torch

from pipeinfer.backend import BadModel

MEMINFO = Path("/proc/meminfo")


def check_room(needed: int, device: torch.device, what: str) -> None:
    """Raises BadModel when `device` has less left than the `needed` bytes of `what`."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise BadModel(f"expected {needed / 1e9:.1f} GB on {device} for {what}, came {free / 1e9:.1f} GB: give"
                       " this rank fewer layers, or choose a smaller dtype")


def free_bytes(device: torch.device) -> int | None:
    """What is left for a new process, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text()) if MEMINFO.exists() else None
    return int(available[1]) * 1024 if available else None
