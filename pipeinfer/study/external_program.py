"""Someone else's program, measured from outside: what it writes, when, and what processor time that took."""

import math
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeinfer.cluster.control_groups import move
from pipeinfer.runtime.cpu_latency import without_deep_idle

LEAVE_S = 5.0
"""How long a program may go on after it has written its last line."""

KILL_S = 1.0
"""How long a program that is told to end has for it."""

MOST_BYTES = 1 << 24
"""A program that writes more than this has gone astray."""

NEAR_END = 16
"""Chunks at the end in which the last line is looked for."""

CPUCLOCK_SCHED = 2
"""In the number of a process clock: exact time, not ticks."""


class Chunk(NamedTuple):
    """Bytes that were read at once, and when, in seconds since the program was started; `processor_s` is what it had
    used of processors by then, with those beside it (seconds, NaN where that was not asked)."""

    at_s: float
    data: bytes
    processor_s: float = math.nan


class ProgramRun(NamedTuple):
    """What a program wrote to standard output and standard error, how long it ran, and its exit code (None: it had to
    be ended). `problem`: why it was ended before its last line, or ""."""

    out: list[Chunk]
    err: list[Chunk]
    seconds: float
    code: int | None
    problem: str = ""


def joined(chunks: Sequence[Chunk]) -> bytes:
    """What was written, without the times."""
    return b"".join(chunk.data for chunk in chunks)


def processor_s(processes: Iterable[int]) -> float:
    """Seconds of processors that all threads of these processes have used, in user and in kernel mode. NaN where the
    system does not say or one of them is gone. They are process clocks of POSIX (clock_getcpuclockid(3)), by the number
    that Linux makes of a process id."""
    try:
        return sum(time.clock_gettime(~process << 3 | CPUCLOCK_SCHED) for process in processes)
    except OSError:
        return math.nan


def run_program(
    command: Sequence[str],
    folder: Path,
    *,
    silence_s: float,
    last: "re.Pattern[bytes]",
    beside: Sequence[int] | None = None,
    node: Path | None = None,
) -> ProgramRun:
    """Run `command` in `folder` until it exits, or writes nothing for `silence_s`, or lingers after it has written
    `last` to standard error. Nothing of it is left running. With the processes that work `beside` it, processor time
    is read. It is put into the control group `node`. Raises OSError when it cannot be started."""
    start = time.monotonic()
    with without_deep_idle(), subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        found = ProgramRun([], [], 0.0, None)
        problem: str | None = ""
        try:
            if node is not None:
                move(process.pid, node)
            counted = () if beside is None else (process.pid, *beside)
            problem = _read(process, found, start, silence_s, last, counted)
            if problem is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LEAVE_S)
        finally:
            seconds, code = time.monotonic() - start, process.returncode
            if code is None:
                _end(process)
    return found._replace(seconds=seconds, code=code, problem=problem or "")


def _read(
    process: "subprocess.Popen[bytes]", found: ProgramRun, start: float, silence_s: float, last: "re.Pattern[bytes]",
    counted: Sequence[int],
) -> str | None:  # fmt: skip
    """Read until both streams end (None), or until there is a reason to end the program ("": it has said it all)."""
    size, said_all = 0, False
    with selectors.DefaultSelector() as selector:
        for stream, chunks in ((process.stdout, found.out), (process.stderr, found.err)):
            assert stream is not None
            selector.register(stream.fileno(), selectors.EVENT_READ, chunks)
        while selector.get_map():
            ready = selector.select(LEAVE_S if said_all else silence_s)
            now, used = time.monotonic() - start, processor_s(counted) if counted else math.nan
            if not ready:
                return "" if said_all else f"it wrote nothing for {silence_s:g} s"
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if data:
                    key.data.append(Chunk(now, data, used))
                    size += len(data)
                else:
                    selector.unregister(key.fd)
            if size > MOST_BYTES:
                return f"it wrote more than {MOST_BYTES >> 20} MiB"
            said_all = said_all or last.search(joined(found.err[-NEAR_END:])) is not None
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the program's process group: its id is the program's until `wait` has told how that ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(KILL_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
