"""What a native library says before it ends the process: whoever waits for the rank elsewhere can hear it no later."""

import threading
from collections.abc import Callable
from contextlib import suppress

_listener: list[Callable[[str], None]] = []
"""One at most: of the rank that is this process."""


def listen(tell: Callable[[str], None]) -> None:
    """From now on `tell` is told, in the thread that listens for the rank."""
    _listener[:] = [tell]


def say(words: str) -> None:
    """For a backend, when its library is about to end the process: one line. Threads of its own cannot tell anybody:
    what the rank speaks through is the main thread's."""
    if threading.current_thread() is threading.main_thread():
        for tell in _listener:
            with suppress(Exception):  # The end comes all the same.
                tell(words)
