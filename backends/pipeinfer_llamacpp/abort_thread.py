"""Asks from a thread of its own whether a computation is to stop, while the native library computes."""

import ctypes
import math
import threading
import time
from typing import TypeAlias

from pipeinfer.engine.backend import AbortCheck
from pipeinfer_llamacpp.library import native_strlen

PERIOD_S = 5e-3
"""How often the question is asked: a cancelled run goes on for half of it on average. Where all cores are busy each
time costs the computation some 50 us, mostly for what it finds replaced in the processor's cache."""

PATIENCE = 20
"""Periods without a computation after which the thread sleeps until the next. Waking it costs as much as a small
model's decode, so while decodes follow one another it keeps time by itself and starting one is an assignment."""

GO_ON, ABORT = b"\0", b"x"
Flag: TypeAlias = "ctypes.Array[ctypes.c_char]"


def new_flag() -> Flag:
    """Room for one character and the end of the string."""
    return (ctypes.c_char * 2)()


class AbortThread:
    """`callback` and `address` go into a context as its `abort_callback` and the data that belongs to it: C's strlen
    over a flag, which becomes non-empty as soon as the current check is true. No Python runs while the graph does.

    A computation that will be over before the first look, by what the last one took, is left alone: one row may take as
    long as many, and many as long as so many times one.
    """

    def __init__(self) -> None:
        self._flag = new_flag()
        self.callback = native_strlen()
        self.address = ctypes.addressof(self._flag)
        self._check: AbortCheck | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._rows, self._last_rows, self._last_s, self._start = 1, 1, math.inf, 0.0
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="abort thread", daemon=True)
        self._thread.start()

    def start(self, check: AbortCheck, rows: int) -> None:
        """A computation of `rows` begins: ask `check` until it ends."""
        self._flag[0] = GO_ON
        self._rows, self._start = rows, time.monotonic()
        if self._last_s * max(1.0, rows / self._last_rows) < PERIOD_S:
            return
        with self._lock:
            self._check = check
        if not self._wanted.is_set():
            self._wanted.set()

    def stop(self, *, computed: bool) -> bool:
        """The computation has ended, `computed` if nothing went wrong; true if it was to stop. From here on the check
        is not called."""
        with self._lock:
            self._check = None
        if self._flag[0] == ABORT:
            return True
        self._last_rows = self._rows
        self._last_s = time.monotonic() - self._start if computed else math.inf
        return False

    def raise_error(self) -> None:
        """Raise what the check raised, if it did. That stopped the computation, too."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        idle = 0
        while not self._closed:
            self._wanted.wait()
            time.sleep(PERIOD_S)
            with self._lock:
                idle = 0 if self._check else idle + 1
                self._look()
                if idle > PATIENCE and not self._closed:
                    self._wanted.clear()

    def _look(self) -> None:
        if self._check is None or self._flag[0] == ABORT:
            return
        try:
            came = self._check()
        except BaseException as error:  # raised again in the thread that computes
            self._error = error
            came = True
        if came:
            self._flag[0] = ABORT
