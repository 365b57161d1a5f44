"""Whether a stage fits, asked before loading: a process that fills the memory is killed without a word."""

import torch

from pipeinfer.cluster import memory
from pipeinfer.engine.backend import BadModel


def check_room(needed: int, device: torch.device, what: str) -> None:
    """Raises BadModel when `device` has less left than the `needed` bytes of `what`."""
    free = free_bytes(device)
    if needed > free:
        raise BadModel(f"expected {needed / 1e9:.1f} GB on {device} for {what}, came {free / 1e9:.1f} GB: give"
                       " this rank fewer layers, or choose a smaller dtype")


def free_bytes(device: torch.device) -> int:
    """What is left for a model."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.free_bytes()
