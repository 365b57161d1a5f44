"""The processes of a head's ranks as it sees them: it starts the one from which they are forked, and hears on a pipe
which process is which rank, where it listens, and how it has ended."""

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from pipeinfer.cluster.forked_ranks import END, START, log_of
from pipeinfer.cluster.process_end import how_it_ended
from pipeinfer.cluster.python_process import python_command, python_environment
from pipeinfer.cluster.ranks import UNKNOWN, Loads
from pipeinfer.cluster.stopped_processes import StoppedProcesses, runs_ranks
from pipeinfer.errors import LaunchError

PARENT_S = 2.0
"""How long the process that they are forked from may take to end them, and itself."""

CHECK_S, LOOK_S = 0.1, 0.01
"""How often those that start, and those that end, are looked at."""


class RankProcesses:
    """Ranks that listen at `local`, with their standard errors in files of `folder`: none before a `start`, which may
    come again after an `end`. The process from which they are forked is prepared to load `loads`; `expected` is how
    many they will be."""

    def __init__(self, local: str, key: Path, folder: Path, loads: Loads = UNKNOWN, expected: int = 0) -> None:
        self.count = 0
        self.pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        """Of those that have ended, as far as was heard."""
        self._addresses: dict[int, str] = {}
        self._folder = folder
        self._unfinished = b""
        command = python_command("pipeinfer.cluster.worker", "--listen", local, "--key", str(key),
                                 "--logs", str(folder), "--backend", loads.backend, "--", *loads.models)  # fmt: skip
        with self._parent_log.open("w") as errors:
            self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            env=python_environment(expected))  # fmt: skip

    @property
    def can_start(self) -> bool:
        """Whether the process that they are forked from is there."""
        return self._parent.poll() is None

    def start(self, count: int) -> None:
        """Have ranks 0 to `count` - 1."""
        self._expect(count)
        self._tell(f"{START} {count}")

    def _expect(self, count: int) -> None:
        self.count = count
        for known in (self.pids, self._codes, self._addresses):
            known.clear()

    def addresses(self) -> list[str]:
        """Where each listens, once all do: importing everything from a disk far away takes as long as it takes. Raises
        LaunchError."""
        stopped = StoppedProcesses(self.pids)
        while len(self._addresses) < self.count:
            if not self._hear(CHECK_S) and not self.can_start:
                self._parent.wait()
            if ended := self.ended():
                rank = next(iter(ended))
                raise LaunchError(f"rank {rank} did not start: {self.last_words(rank)}")
            if found := stopped.found():
                raise LaunchError(f"rank {found[0]} did not start: {found[1]}")
        return [self._addresses[rank] for rank in range(self.count)]

    def ended(self) -> dict[int, int]:
        """The return codes of those that have ended, by rank: with the process that they were forked from all have."""
        self._heard()
        lost = {} if self.can_start else dict.fromkeys(range(self.count), self._parent.returncode)
        return dict(sorted((lost | self._codes).items()))

    def last_words(self, rank: int) -> str:
        """How a rank has ended, and the last line that it wrote to its standard error, or its parent's."""
        how = how_it_ended(self.ended()[rank])
        for log in (log_of(self._folder, rank), self._parent_log):
            said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            if said:
                return f"{how}: {said[-1]}"
        return how

    def end(self) -> None:
        """End them at once; the process that they are forked from stays, if it does what it is told."""
        if self.can_start:
            self._tell(END)
            self._wait(PARENT_S)
        if len(self._codes) < self.count:
            self._end_parent()
        self._expect(0)

    def close(self, patience_s: float) -> None:
        """Wait until they have left, then make them: a rank has nothing to lose, and one that hangs would not be asked.
        The process that they are forked from goes too."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._wait(patience_s)
        self._parent.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._parent.wait(PARENT_S)
        self._end_parent()
        self._parent.stdout.close()

    def _wait(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while len(self._codes) < self.count and self.can_start and (left := deadline - time.monotonic()) > 0:
            self._hear(left)

    def _end_parent(self) -> None:
        """Its ranks end with it, at once where the system sees to that. A new parent takes leave of them, which may be
        this process."""
        self._parent.kill()
        self._parent.wait()
        left = [process for rank, process in self._heard().items() if rank not in self._codes]
        deadline = time.monotonic() + PARENT_S
        while left and time.monotonic() < deadline:
            for process in left:
                with suppress(ChildProcessError):
                    os.waitpid(process, os.WNOHANG)
                if runs_ranks(process):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            left = [process for process in left if runs_ranks(process)]
            time.sleep(LOOK_S if left else 0)

    def _tell(self, line: str) -> None:
        assert self._parent.stdin is not None
        with suppress(BrokenPipeError):  # It has ended, as whoever waits for an answer finds out.
            os.write(self._parent.stdin.fileno(), f"{line}\n".encode())

    def _heard(self) -> dict[int, int]:
        """The processes by rank, after all was taken in that has been said."""
        while self._hear(0):
            pass
        return self.pids

    def _hear(self, patience_s: float) -> bool:
        """Take in what was said, waiting for it if need be; False where there was nothing, or nothing will come."""
        assert self._parent.stdout is not None
        pipe = self._parent.stdout.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        said = os.read(pipe, 1 << 16) if ready.poll(1e3 * patience_s) else b""
        *lines, self._unfinished = (self._unfinished + said).split(b"\n")
        for line in lines:
            _, rank, what, value = line.decode().split()
            self._note(int(rank), what, value)
        return bool(said)

    def _note(self, rank: int, what: str, value: str) -> None:
        if what == "is":
            self.pids[rank] = int(value)
        elif what == "listening":
            self._addresses[rank] = value
        elif what == "ended":
            self._codes[rank] = int(value)

    @property
    def _parent_log(self) -> Path:
        return self._folder / "ranks.err"
