"""Processes that end with the one that started them, also where they are stopped."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


def end_with_parent(parent: int) -> None:
    """Have the system end this process when `parent`, which forked it, is gone, if the system knows how: it looks at
    the thread that did so, which is to be the main one."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # It was gone before.
