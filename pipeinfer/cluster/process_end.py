"""How a process has ended, in words: a signal by its name, with what it usually means."""

import os
import signal
from pathlib import Path

USUALLY = {
    "SIGILL": "an instruction that this processor does not have: an engine was built for another one,"
              " `pipeinfer doctor` names the cure",
    "SIGSEGV": "a fault in native code, of an engine or a model file that it cannot read:"
               " `pipeinfer doctor` tries each engine",
    "SIGBUS": "memory that is not there: /dev/shm is full, or a mapped model file was cut short",
    "SIGABRT": "an engine found a fault of its own and stopped",
    "SIGFPE": "a division by zero in native code",
    "SIGKILL": "the system was out of memory, or somebody ended it",
    "SIGTERM": "somebody ended it",
    "SIGXCPU": "its limit of processor time was reached",
}  # fmt: skip


def how_it_ended(code: int) -> str:
    """From a process's return code, which is a signal's number where it is negative."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"killed by signal {-code}"
    return f"killed by {name} (usually {USUALLY[name]})" if name in USUALLY else f"killed by {name}"


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped, as by SIGSTOP, and has not been continued. False where the system cannot say: of
    others than children it takes /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        pass
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
