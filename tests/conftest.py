"""What all tests share: the option `--full`, and that no test leaves a process behind."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LEAVE_S = 5.0

# What a shell runs in the background ignores interrupts, and so would whatever these tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before NumPy is loaded: ranks share the cores, and so do the threads of these tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run whole matrices instead of a selection: takes hours")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every process that a test started has ended when the session ends."""
    before = set(children(os.getpid()))
    yield
    deadline = time.monotonic() + LEAVE_S
    while left := set(children(os.getpid())) - before:
        assert time.monotonic() < deadline, f"processes left behind: {sorted(left)}"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The processes that `pid` started, all of its threads counted, and that have not been waited for."""
    tasks = Path(f"/proc/{pid}/task")
    found: list[int] = []
    for task in tasks.iterdir() if tasks.exists() else ():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # The thread has ended meanwhile.
    return found
