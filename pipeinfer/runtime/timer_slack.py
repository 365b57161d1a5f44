"""Sleeps that end when they should.

Linux may end the sleep of an ordinary thread some 50 us late, so that several share one wake-up of a core: prctl(2),
PR_SET_TIMERSLACK. What waits for a shaped link or an emulated stage would add that to every wait.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_TIMERSLACK, _PR_GET_TIMERSLACK = 29, 30
_LEAST_NS = 1


@contextmanager
def without_timer_slack() -> Iterator[None]:
    """For this thread, and for those that it starts meanwhile; one session may lie within another. Where the system
    knows no slack, all is as before."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        yield
        return
    before_ns = prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0)
    prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_LEAST_NS), 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(before_ns), 0, 0, 0)
