"""Where ggml finds a fault of its own it ends the process. What runs guarded fails by it instead and the process lives.

ggml calls back before it ends the process and has no way to go on. So the thread that it calls back from stays there
for good, with the memory that it holds, while whoever waited for its work is told.
"""

import ctypes
import math
import re
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from pipeinfer.engine import last_words
from pipeinfer.errors import one_line

T = TypeVar("T")

_waiting: dict[threading.Thread, "SimpleQueue[tuple[Any, BaseException | None]]"] = {}
"""Threads that run guarded, and where the outcome of each is waited for."""

_last_abort_s = -math.inf

NAME = "guarded by pipeinfer"
"""Of those threads."""

SETTLE_S = 10.0
"""After an abort, for how long ggml's other threads may come to the same."""

FOREVER = threading.Event()
"""Never set."""


class NativeAbort(RuntimeError):  # noqa: N818 - reads as what happened
    """The native library found a fault of its own; the text is what it says, in one line."""


def guarded(run: Callable[[], T]) -> T:
    """What `run()` gives, on a thread of its own. Raises what it raises, or NativeAbort."""
    outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            outcome.put((run(), None))
        except BaseException as problem:  # raised where it is waited for
            outcome.put((None, problem))

    thread = threading.Thread(target=work, name=NAME, daemon=True)
    _waiting[thread] = outcome
    try:
        thread.start()
        result, problem = outcome.get()
    finally:
        del _waiting[thread]
    if problem is not None:
        raise problem
    found: T = result
    return found


def on_abort(text: bytes) -> None:
    """When it returns, the process ends with these as its last words."""
    said = re.sub(r"^\S*/", "", one_line(text.decode(errors="replace")))  # without the folders of whoever built it
    thread = threading.current_thread()
    if is_guarded(thread):
        for outcome in [_waiting[thread]] if thread in _waiting else list(_waiting.values()):
            outcome.put((None, NativeAbort(said)))
        FOREVER.wait()
    print(said, file=sys.stderr, flush=True)
    last_words.say(said)


def is_guarded(thread: threading.Thread) -> bool:
    """Whether it is one of those that run guarded, or of ggml's own, which compute for them: several may find the same
    fault, one after another."""
    global _last_abort_s
    now = time.monotonic()
    foreign = isinstance(thread, threading._DummyThread)
    if thread.name != NAME and not (foreign and (_waiting or now - _last_abort_s < SETTLE_S)):
        return False
    _last_abort_s = now
    return True


before_abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(on_abort)
"""ggml's abort callback."""
