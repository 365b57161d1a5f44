"""The command line and the ranks it starts, as processes that tests look at and end."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO

import pytest
from forked_commands import PARENT, ForkedCommand

from pipeinfer.cli import run as run_line
from pipeinfer.cluster.launch import Cluster
from pipeinfer_emulated import EmulatedBackend

EMULATED = ["--backend", "emulated", "--backend-option", "layers=4", "--backend-option", "layer_s=0.005"]
"""Steady tokens for as long as a test wants them, on any machine."""

PROMPT = ["a", "prompt"]


@contextmanager
def rank_on_the_core_of_its_head() -> Iterator[int]:
    """The process of an emulated stage that shares one core with this one."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        options = {"layers": 1, "layer_s": 0.0}
        with Cluster(backend="emulated", backend_options=options, draft=None, stages=1) as cluster:
            yield cluster.ready[0].pid
    finally:
        os.sched_setaffinity(0, cores)


def start(
    *arguments: str, stderr: IO[str] | int = subprocess.PIPE, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str] | ForkedCommand":
    """`pipeinfer ARGUMENTS` in a process group of its own: forked from one that has imported it, or, in an environment
    of its own, started like any other."""
    if env is None:
        return ForkedCommand(*arguments, stderr=stderr)
    command = [sys.executable, "-m", "pipeinfer", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
        env=env,
    )  # fmt: skip


def piped(*arguments: str | bytes, encoding: str = "utf-8", input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`pipeinfer ARGUMENTS` in this process, between streams of that encoding; arguments are made of bytes as usual."""
    streams = [io.TextIOWrapper(io.BytesIO(content), encoding) for content in (input, b"", b"")]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[1]), redirect_stderr(streams[2]):
        patch.setattr(sys, "stdin", streams[0])
        code = run_line([os.fsdecode(argument) for argument in arguments])
    for stream in streams[1:]:
        stream.flush()
    return subprocess.CompletedProcess(arguments, code, *[stream.buffer.getvalue() for stream in streams[1:]])


@contextmanager
def generating(*arguments: str, nodes: int = 3) -> Iterator["Generating"]:
    """`pipeinfer generate` of many emulated tokens. What is left of it at the end is killed, each by its own id."""
    command = ["generate", " ".join(PROMPT), *EMULATED, "--nodes", str(nodes), "--tokens", "3000", *arguments]
    process = start(*command)
    ranks: dict[int, int] = {}
    try:
        yield Generating(process, ranks, nodes)
    finally:
        for pid in [process.pid, *ranks.values()]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


class Generating:
    """The process of a generation, and the pids of its `ranks`."""

    def __init__(self, process: "subprocess.Popen[str] | ForkedCommand", ranks: dict[int, int], nodes: int) -> None:
        self.process = process
        self.ranks = ranks
        self._nodes = nodes

    def wait_for_ranks(self) -> None:
        """Until every rank has been started."""
        deadline = time.monotonic() + 120
        while len(self.ranks) < self._nodes:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            self.ranks.update(ranks_of(self.process.pid))
            time.sleep(0.01)

    def read_some(self, size: int = 40) -> str:
        """At least that much of the text, once it is there."""
        self.wait_for_ranks()
        assert self.process.stdout is not None
        text = ""
        while len(text) < size:
            some = os.read(self.process.stdout.fileno(), size).decode()
            assert some, f"the text ends after {text!r}"
            text += some
        return text

    def end(self, within: float) -> tuple[int, str, str]:
        """Exit code, the rest of the text and the errors; the process has to end by itself."""
        text, errors = self.process.communicate(timeout=within)
        return self.process.returncode, text, errors

    def assert_nothing_left(self, within: float) -> None:
        """No rank is alive, or will be after that many seconds."""
        deadline = time.monotonic() + within
        while left := {rank: pid for rank, pid in self.ranks.items() if alive(pid)}:
            assert time.monotonic() < deadline, f"ranks left behind: {left}"
            time.sleep(0.02)


def forking(pid: int, others: Collection[int] = ()) -> list[int]:
    """The processes from which those of ranks are forked, that process `pid` has started, but for `others`."""
    return [child for child in _children(pid) if child not in others
            and ("pipeinfer.cluster.worker" in _words(child) or _name(child) == PARENT)]  # fmt: skip


def ranks_of(pid: int, others: Collection[int] = ()) -> dict[int, int]:
    """Rank to pid, of the ranks that process `pid` has started, but for those that were forked from `others`."""
    found = {}
    for parent in forking(pid, others):
        for rank in _children(parent):
            name = _name(rank)
            if name.startswith("rank "):
                found[int(name.removeprefix("rank "))] = rank
    return found


def alive(pid: int) -> bool:
    """There is such a process, and it has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def emulated_text(count: int) -> str:
    """What the emulated target says after PROMPT."""
    oracle = EmulatedBackend()._oracle
    return "".join(f" {oracle.target(position)}" for position in range(len(PROMPT), len(PROMPT) + count))


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]  # fmt: skip
    except OSError:
        return []


def _words(pid: int) -> Sequence[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
