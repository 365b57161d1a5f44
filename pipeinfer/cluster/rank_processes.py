"""The processes of a session's ranks as their head sees them: it starts the one from which they are forked, and hears
on a pipe which process is which rank, where it listens, and how it has ended."""

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from pipeinfer.cluster.forked_ranks import log_of
from pipeinfer.cluster.process_end import how_it_ended
from pipeinfer.cluster.python_process import python_command, python_environment
from pipeinfer.errors import LaunchError

PARENT_S = 5.0
"""How long the process that they are forked from may take to end after them."""


class RankProcesses:
    """`count` ranks that listen at `local`, with their standard errors in files of `folder`."""

    def __init__(self, local: str, count: int, key: Path, folder: Path) -> None:
        self.count = count
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        """Of those that have ended, as far as was heard."""
        self._addresses: dict[int, str] = {}
        self._folder = folder
        self._unfinished = b""
        command = python_command("pipeinfer.cluster.worker", "--listen", local, "--ranks", str(count),
                                 "--key", str(key), "--logs", str(folder))  # fmt: skip
        with self._parent_log.open("w") as errors:
            self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            env=python_environment())  # fmt: skip

    def addresses(self) -> list[str]:
        """Where each listens, once all do: importing everything from a disk far away takes as long as it takes. Raises
        LaunchError."""
        while len(self._addresses) < self.count:
            if not self._hear(None):
                self._parent.wait(PARENT_S)
            if ended := self.ended():
                rank = next(iter(ended))
                raise LaunchError(f"rank {rank} did not start: {self.last_words(rank)}")
        return [self._addresses[rank] for rank in range(self.count)]

    def ended(self) -> dict[int, int]:
        """The return codes of those that have ended, by rank."""
        self._heard()
        if self._parent.poll() is not None:  # It waits for all, so it was ended itself: nothing is heard of the others.
            self.codes |= {rank: self._parent.returncode for rank in range(self.count) if rank not in self.codes}
        return dict(sorted(self.codes.items()))

    def last_words(self, rank: int) -> str:
        """How a rank has ended, and the last line that it wrote to its standard error, or its parent's."""
        how = how_it_ended(self.codes[rank])
        for log in (log_of(self._folder, rank), self._parent_log):
            said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            if said:
                return f"{how}: {said[-1]}"
        return how

    def end(self, deadline: float) -> None:
        """Wait until they have left, then make them: a rank has nothing to lose, and one that hangs would not be
        asked."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        with suppress(subprocess.TimeoutExpired):
            self._parent.wait(max(0.0, deadline - time.monotonic()))
        self._parent.stdin.close()  # By this end those of which nothing was heard yet, as soon as they are there.
        if self._parent.returncode != 0:
            self._kill()
        self._parent.stdout.close()

    def _kill(self) -> None:
        for process in [process for rank, process in self._heard().items() if rank not in self.codes]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if len(self.pids) < self.count:
            self._parent.kill()
        try:
            self._parent.wait(PARENT_S)
        except subprocess.TimeoutExpired:
            self._parent.kill()
            self._parent.wait()

    def _heard(self) -> dict[int, int]:
        """The processes by rank, after all was taken in that has been said."""
        while self._hear(0):
            pass
        return self.pids

    def _hear(self, patience_s: float | None) -> bool:
        """Take in what was said, waiting for it if need be; False where there was nothing, or nothing will come."""
        assert self._parent.stdout is not None
        pipe = self._parent.stdout.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        said = os.read(pipe, 1 << 16) if ready.poll(None if patience_s is None else 1e3 * patience_s) else b""
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
            self.codes[rank] = int(value)

    @property
    def _parent_log(self) -> Path:
        return self._folder / "ranks.err"
