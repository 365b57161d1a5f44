"""Ranks of one head on one machine: a process that has imported what they all need, and forks each of them.

Importing it takes most of the time in which a rank starts, and so it is done once, also where ranks are lost and others
take their places. Nothing computes before the ranks are apart, and no engine is loaded: neither threads nor a GPU's
context live through a fork.
"""

import gc
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeAlias

from pipeinfer.cluster.parent_death import end_with_parent

Say: TypeAlias = Callable[[str], None]
"""Tells the launcher a line."""

NAME = Path("/proc/self/comm")
"""What `ps` shows of a process beside its command line, where there is such a file."""

START, END = "start", "end"
"""What the launcher says: `start N` to have ranks 0 to N - 1, and `end` to have none."""


def log_of(folder: Path, rank: int) -> Path:
    """What a rank has written to its standard error."""
    return folder / f"rank-{rank}.err"


class ForkedRanks:
    """Has `run(rank, say)` done in a process for each rank that the launcher wants on standard input, with standard
    error in the folder `logs`. On standard output is said which process is which rank, what each says, and how each
    ended. When standard input closes the launcher is gone, however it went, and the ranks go too."""

    def __init__(self, run: Callable[[int, Say], int], logs: Path) -> None:
        self._run = run
        self._logs = logs
        self._process = os.getpid()
        self._input, self._output = sys.stdin.fileno(), sys.stdout.fileno()
        self._ranks: dict[int, int] = {}
        """By process."""
        self._life, self._held = os.pipe()
        """Ranks read one end, and this process holds the other: it closes with it."""
        self._ends, waking = os.pipe()
        os.set_blocking(self._ends, False)
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the launcher is gone."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # It comes to the head as well, which ends the session.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        gc.freeze()  # A collection in a rank leaves alone what lies in memory that it shares with the others.
        while True:
            ready, _, _ = select.select([self._input, self._ends], [], [])
            if self._ends in ready:
                os.read(self._ends, 4096)
                self._take_leave(os.WNOHANG)
            if self._input in ready and not self._obey(os.read(self._input, 4096)):
                break
        self._end_all()

    def _obey(self, said: bytes) -> bool:
        """Do what the lines say, each of which comes in one piece; false where none will come any more."""
        for line in said.decode().splitlines():
            what, _, count = line.partition(" ")
            if what == START:
                self._fork(int(count))
            elif what == END:
                self._end_all()
        return bool(said)

    def _fork(self, count: int) -> None:
        for rank in range(count):
            process = os.fork()
            if process == 0:
                self._be(rank)
            self._ranks[process] = rank
            self._tell(rank, f"is {process}")

    def _end_all(self) -> None:
        for process in self._ranks:
            os.kill(process, signal.SIGKILL)  # It is this process's child, and so the id is that of no other.
        self._take_leave(0)

    def _take_leave(self, options: int) -> None:
        """Say how those have ended that have, with os.WNOHANG, or how all do."""
        while self._ranks:
            process, status = os.waitpid(-1, options)
            if not process:
                return
            self._tell(self._ranks.pop(process), f"ended {os.waitstatus_to_exitcode(status)}")

    def _be(self, rank: int) -> NoReturn:
        """Be a rank, and nothing else: of what belongs to the process that was forked nothing is taken apart. The
        launcher hears what the rank says to it, and not what its engine may print."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            end_with_parent(self._process)
            os.close(self._held)
            os.dup2(self._life, self._input)
            threading.Thread(target=_end_with_input, args=(self._input,), daemon=True).start()
            output, self._output = self._output, os.dup(self._output)
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
            log = os.open(log_of(self._logs, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, sys.stderr.fileno())
            with suppress(OSError):
                NAME.write_text(f"rank {rank}")
            code = self._run(rank, lambda line: self._tell(rank, line))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _tell(self, rank: int, line: str) -> None:
        """Several processes do, and each line goes in one piece."""
        with suppress(BrokenPipeError):  # The launcher is gone, and so will they be.
            os.write(self._output, f"rank {rank} {line}\n".encode())


def _end_with_input(life: int) -> None:
    """On systems that do not know how, this does it, unless the process is stopped."""
    while os.read(life, 1):
        pass
    os._exit(1)
