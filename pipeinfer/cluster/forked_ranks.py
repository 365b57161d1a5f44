"""Ranks of one session on one machine: a process that has imported what they all need, and forks each of them.

Importing it takes most of the time in which a rank starts, and so it is done once. Nothing computes before the ranks
are apart, and no engine is loaded: neither threads nor a GPU's context live through a fork.
"""

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeAlias

Say: TypeAlias = Callable[[str], None]
"""Tells the launcher a line."""

NAME = Path("/proc/self/comm")
"""What `ps` shows of a process beside its command line, where there is such a file."""


def log_of(folder: Path, rank: int) -> Path:
    """What a rank has written to its standard error."""
    return folder / f"rank-{rank}.err"


def fork_ranks(count: int, run: Callable[[int, Say], int], logs: Path) -> None:
    """Have `run(rank, say)` be done in a process for each of `count` ranks, with standard error in the folder `logs`,
    and wait for them. On standard output is said which process is which rank, what each says, and how each ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It comes to the head as well, which ends the session.
    gc.freeze()  # A collection in a rank leaves alone what lies in memory that it shares with the others.
    output = sys.stdout.fileno()
    ranks: dict[int, int] = {}
    for rank in range(count):
        process = os.fork()
        if process == 0:
            _be(rank, run, log_of(logs, rank))
        ranks[process] = rank
        _tell(output, rank, f"is {process}")
    while ranks:
        process, status = os.wait()
        _tell(output, ranks.pop(process), f"ended {os.waitstatus_to_exitcode(status)}")


def _be(rank: int, run: Callable[[int, Say], int], log: Path) -> NoReturn:
    """Be a rank, and nothing else: of what belongs to the process that was forked nothing is taken apart. The launcher
    hears what the rank says to it, and not what its engine may print."""
    code = 1
    try:
        output = os.dup(sys.stdout.fileno())
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), sys.stderr.fileno())
        with suppress(OSError):
            NAME.write_text(f"rank {rank}")
        code = run(rank, lambda line: _tell(output, rank, line))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell(output: int, rank: int, line: str) -> None:
    """Several processes do, and each line goes in one piece."""
    os.write(output, f"rank {rank} {line}\n".encode())
