"""Keeps the cores out of their deep idle states while ranks are at work.

A pipeline is made of short waits: a core falls asleep between two messages, and waking it costs more than the message
does. Linux keeps cores from it on request (PM QoS, Documentation/power/pm_qos_interface.rst), for as long as the
request is held open. Who may make one is the system's to say; where it refuses, cores sleep as they always did.
"""

import os
import struct
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

REQUESTS = Path("/dev/cpu_dma_latency")

AT_ONCE = struct.pack("=i", 0)
"""How long a core may take to wake up, in microseconds."""


def without_deep_idle(requests: Path = REQUESTS) -> AbstractContextManager[object]:
    """From now until the context is left, where the system lets us."""
    try:
        request = os.fdopen(os.open(requests, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0)
    except OSError:
        return nullcontext()
    with suppress(OSError):
        request.write(AT_ONCE)
    return request
