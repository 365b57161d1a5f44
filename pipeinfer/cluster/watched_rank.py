"""A rank that has a parent: where others end a whole world with the first process that dies, and say a number at most,
it says which rank that was.

The parent is what a launcher started, and ends when its child does; the child ends with it too, however it went.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pipeinfer.cluster.parent_death import end_with_parent
from pipeinfer.cluster.process_end import how_it_ended
from pipeinfer.runtime.control import Setup

LEFT = b"\0"
"""The child's last word where it ends by itself: the head knows why then."""


class WatchedRank:
    """The child's side."""

    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent
        threading.Thread(target=self._end_with_parent, daemon=True).start()

    def is_to_be(self, setup: Setup) -> None:
        """Tell the parent what rank this is."""
        self._parent.send(f"{setup.name} on {socket.gethostname()} (pid {os.getpid()})\n".encode())

    def leave(self) -> None:
        """It is no loss from here on."""
        self._parent.send(LEFT)

    def _end_with_parent(self) -> None:
        self._parent.recv(1)
        os._exit(1)


@contextmanager
def watched_rank(unnamed: str) -> Iterator[WatchedRank]:
    """What follows is done by a child of this process, which stays, to say how the child ended. `unnamed` is what it is
    called until it is told what rank it is. Before there are threads, and before MPI is initialized."""
    here, there = socket.socketpair()
    parent = os.getpid()
    child = os.fork()
    if child:
        there.close()
        _watch(child, here, unnamed)
    here.close()
    end_with_parent(parent)
    rank = WatchedRank(there)
    try:
        yield rank
    finally:
        rank.leave()


def _watch(child: int, said: socket.socket, unnamed: str) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The head is asked to end, and ends the others.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    words = b""
    while more := said.recv(4096):
        words += more
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not words.endswith(LEFT):
        name = words.decode().splitlines()[-1] if words else unnamed
        print(f"error: lost {name}: {how_it_ended(code)}", file=sys.stderr, flush=True)
    os._exit(code if code >= 0 else 128 - code)
