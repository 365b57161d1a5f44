"""Processes whose memory lies where it lies in every other one that was started like that.

What a processor has learnt of a program's branches it finds by their addresses. Linux gives each process addresses of
its own at random, so that of ranks that take turns on a core each finds nothing of what the others have taught it,
though all run the same program: a rank that wakes up for a message then takes twice as long for it. The random
addresses are a defence of programs whose memory a stranger can write over, and are left as they are where ranks have
cores of their own, and for workers, which strangers can reach.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_ADDR_NO_RANDOMIZE = 0x0040000
_ASK = 0xFFFFFFFF
"""See personality(2). It is each thread's own, and what the thread starts inherits it."""


@contextmanager
def same_memory_layout() -> Iterator[None]:
    """For what this thread starts meanwhile, where the system lets us."""
    personality = getattr(ctypes.CDLL(None), "personality", None)
    before = personality(ctypes.c_ulong(_ASK)) if personality is not None else -1
    if personality is None or before < 0:
        yield
        return
    personality(ctypes.c_ulong(before | _ADDR_NO_RANDOMIZE))  # Where that is refused, all is as before.
    try:
        yield
    finally:
        personality(ctypes.c_ulong(before))
