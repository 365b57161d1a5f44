"""Asks between the nodes of a graph whether a computation is to stop: on the thread that computes, which no other then
wakes or competes with. It takes a compiled callback; abort_thread.py is for where there is none."""

import ctypes
from typing import Any

from pipeinfer.engine.backend import AbortCheck
from pipeinfer_llamacpp.abort_thread import PERIOD_S, AbortThread
from pipeinfer_llamacpp.native import compiled

Question = ctypes.CFUNCTYPE(ctypes.c_bool)


class PollFields(ctypes.Structure):
    """struct abort_poll of abort_poll.c."""

    _fields_ = (
        ("next_ns", ctypes.c_int64),
        ("period_ns", ctypes.c_int64),
        ("ask", Question),
        ("stop", ctypes.c_bool),
    )


class AbortPoll:
    """`callback` and `address` go into a context as its `abort_callback` and the data that belongs to it."""

    def __init__(self, callback: Any) -> None:
        self.callback = callback
        self._fields = PollFields(period_ns=int(1e9 * PERIOD_S), ask=Question(self._ask))
        self.address = ctypes.addressof(self._fields)
        self._check: AbortCheck | None = None
        self._error: BaseException | None = None

    def start(self, check: AbortCheck, rows: int) -> None:
        """A computation begins: ask `check` until it ends."""
        self._check = check
        self._fields.next_ns, self._fields.stop = 0, False

    def stop(self, *, computed: bool) -> bool:
        """The computation has ended; true if it was to stop."""
        return bool(self._fields.stop)

    def raise_error(self) -> None:
        """Raise what the check raised, if it did. That stopped the computation, too."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Nothing is left."""

    def _ask(self) -> bool:
        assert self._check is not None
        try:
            return self._check()
        except BaseException as error:  # raised again when the library has returned
            self._error = error
            return True


def open_abort() -> AbortPoll | AbortThread:
    """What stops computations here."""
    library = compiled("abort_poll")
    return AbortThread() if library is None else AbortPoll(library.on_poll)
