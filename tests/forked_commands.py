"""Processes of the command line, and those from which a head's ranks are forked, that are forked from one that has
imported what they take, which is most of the time in which they start. Each is a process like any other, in a process
group of its own; but its parent is that one, which says how it has ended.

Run by itself, this file is the process that they are forked from.
"""

import gc
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

REQUEST, STATUS = 1 << 20, 64
"""Bytes of a request, and of what is said of a process, at the most."""

PARENT = "parent of ranks"
"""The name of the process from which those of a command are forked."""


class Forked:
    """A process that runs `args`, whose standard input, output and error are these files; used as a
    `subprocess.Popen`. Whatever else is told to it is in `asked`."""

    returncode: int | None = None

    def __init__(self, args: Sequence[str], environment: Mapping[str, str], *streams: int, **asked: str) -> None:
        self.args = args
        self._status, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = {"environment": dict(environment), "folder": os.getcwd(), "cores": _cores()}
        request = json.dumps({"arguments": args, **here, **asked})
        with told:
            socket.send_fds(_forking(), [request.encode()], [*streams, told.fileno()])
        for file in streams:
            os.close(file)
        self.pid = int(self._status.recv(STATUS))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                said = self._status.recv(STATUS)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self.returncode = int(said)
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # It has ended, which is about to be said.
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedCommand(Forked):
    """`pipeinfer ARGUMENTS`, with nothing on its standard input. To it `missing` is a module that is not installed."""

    def __init__(self, *arguments: str, stderr: IO[str] | int = subprocess.PIPE, missing: str = "") -> None:
        self.stdout, output = _pipe()
        self.stderr, errors = _pipe() if stderr == subprocess.PIPE else (None, os.dup(stderr.fileno()))
        nothing = os.open(os.devnull, os.O_RDONLY)
        super().__init__(["pipeinfer", *arguments], os.environ, nothing, output, errors, missing=missing)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it says from now on, and wait for its end."""
        streams = [self.stdout, self.stderr]
        said: dict[int, str] = {}

        def read(number: int, stream: IO[str]) -> None:
            with stream:
                said[number] = stream.read()

        readers = [
            threading.Thread(target=read, args=(number, stream), daemon=True)
            for number, stream in enumerate(streams)
            if stream is not None and not stream.closed
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return said.get(0, ""), said.get(1, "")


class ParentOfRanks(Forked):
    """`python -m pipeinfer.cluster.worker`, as which a head in this process starts it."""

    def __init__(
        self, command: list[str], *, stdin: int, stdout: int, stderr: IO[str], env: Mapping[str, str]
    ) -> None:
        assert stdin == stdout == subprocess.PIPE
        (read, write), (hear, say) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(write, "wb"), os.fdopen(hear, "rb")
        super().__init__(_of_module(command), env, read, say, os.dup(stderr.fileno()))


@contextmanager
def parents_of_ranks_are_forked() -> Iterator[None]:
    """Those of heads in this process, from here on."""
    from pipeinfer.cluster import rank_processes

    started, rank_processes.subprocess = rank_processes.subprocess, popen_is(ParentOfRanks)
    yield
    rank_processes.subprocess = started


def popen_is(start: Any) -> Any:
    """What a module finds as `subprocess` that is to start processes in that way."""
    return SimpleNamespace(Popen=start, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)


def _of_module(command: list[str]) -> list[str]:
    """The name of a module that Python is told to run, and what the module is told."""
    return command[command.index("-m") + 1 :]


def _cores() -> list[int]:
    """Those that this thread may use, and what it starts."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _pipe() -> tuple[IO[str], int]:
    """The end from which this process reads, and the other one."""
    here, there = os.pipe()
    return os.fdopen(here, encoding="utf-8"), there


_parent: list[tuple["subprocess.Popen[bytes]", socket.socket]] = []
_one_starts_it = threading.Lock()


def _forking() -> socket.socket:
    """Where the process that they are forked from, which is started for the first, takes requests."""
    with _one_starts_it:
        if not _parent:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with there:
                command = [sys.executable, __file__, str(there.fileno()), "pipeinfer"]  # as which `ps` shows them all
                process = subprocess.Popen(command, pass_fds=[there.fileno()], start_new_session=True)
            _parent.append((process, here))
        return _parent[0][1]


def forked_from() -> list[int]:
    """The process that they are forked from, if one was started."""
    return [process.pid for process, _ in _parent]


def end_forking() -> None:
    """End the process that they are forked from, if one was started."""
    while _parent:
        process, requests = _parent.pop()
        requests.close()
        process.wait()


# The process that they are forked from


def forked_when_asked(requests: socket.socket) -> bool:
    """Returns True in each process that was asked for, and False in this one when no more will be."""
    ended, waking = os.pipe()
    for end in (ended, waking):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    there: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as ready:
        ready.register(requests, selectors.EVENT_READ)
        ready.register(ended, selectors.EVENT_READ)
        while True:
            found = [key.fileobj for key, _ in ready.select()]
            if ended in found:
                os.read(ended, 4096)
                _take_leave(there)
            if requests in found:
                said, files, _, _ = socket.recv_fds(requests, REQUEST, 4)
                if not said:
                    return False
                process = os.fork()
                if process == 0:
                    break
                told = there[process] = socket.socket(fileno=files.pop())
                told.send(str(process).encode())
                for file in files:
                    os.close(file)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in (*there.values(), requests):
        each.close()
    for file in (ended, waking):
        os.close(file)
    _become(json.loads(said), files)
    return True


def _take_leave(there: dict[int, socket.socket]) -> None:
    while there:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        with there.pop(process) as told, suppress(BrokenPipeError):
            told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(asked: dict[str, Any], files: list[int]) -> None:
    *streams, told = files
    os.setsid()
    os.close(told)
    _take_streams(*streams)
    if asked["cores"]:
        os.sched_setaffinity(0, asked["cores"])
    os.chdir(asked["folder"])
    _take_environment(asked["environment"])
    tempfile.tempdir = None
    sys.argv = asked["arguments"]
    if sys.argv[0] == "pipeinfer" and sys.argv[1:2] not in ([], ["worker"]):
        _fork_parent_of_ranks()
    if missing := asked.get("missing"):
        assert missing not in sys.modules
        sys.modules[missing] = None  # type: ignore[assignment]


def _take_streams(*files: int) -> None:
    """Standard input, output and error. Those that were there were told of other files whether one may seek in them."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _take_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


class ForkedParent:
    """The process from which a command's ranks are forked, itself forked before the command had threads; used as the
    `subprocess.Popen` of `python -m pipeinfer.cluster.worker`, which imports it all again."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("pipeinfer.cluster.worker", timeout)
            time.sleep(0.001)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _fork_parent_of_ranks() -> None:
    """The first such process that this one starts is forked now. Others are started like any other."""
    from pipeinfer.cluster import rank_processes

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = os.fork()
    if process == 0:
        here.close()
        _be_parent_of_ranks(there)
    there.close()
    popen = subprocess.Popen

    def start(command: list[str], *, stderr: IO[str], env: dict[str, str], **pipes: int) -> Any:
        if here.fileno() < 0:
            return popen(command, stderr=stderr, env=env, **pipes)
        (read, write), (hear, say) = os.pipe(), os.pipe()
        with here:
            request = {"arguments": _of_module(command), "environment": env}
            socket.send_fds(here, [json.dumps(request).encode()], [read, say, stderr.fileno()])
        os.close(read)
        os.close(say)
        return ForkedParent(process, os.fdopen(write, "wb"), os.fdopen(hear, "rb"))

    rank_processes.subprocess = popen_is(start)


def _be_parent_of_ranks(head: socket.socket) -> NoReturn:
    """Wait until it is wanted, which it may never be, and then be what the command asks for."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        said, files, _, _ = socket.recv_fds(head, REQUEST, 3)
        head.close()
        if said:
            asked = json.loads(said)
            _take_streams(*files)
            _take_environment(asked["environment"])
            sys.argv = asked["arguments"]
            _run_parent_of_ranks()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _run_parent_of_ranks() -> None:
    from pipeinfer.cluster import worker
    from pipeinfer.cluster.forked_ranks import NAME

    sys.path[:] = os.environ["PYTHONPATH"].split(os.pathsep)
    NAME.write_text(PARENT)
    worker.main()


def import_all() -> None:
    """What workers and heads take, but for engines: they have threads, which live through no fork. Servers take more,
    which the others would look at in each garbage collection."""
    import pipeinfer.cluster.processes
    import pipeinfer.cluster.worker
    import pipeinfer.runtime.transports.certificates
    import pipeinfer.runtime.transports.tcp
    import pipeinfer.runtime.transports.tls  # noqa: F401
    import pipeinfer_numpy  # noqa: F401
    from pipeinfer.cli import run

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        run(["generate", "a", "--backend", "emulated", "--transport", "inproc", "--nodes", "2", "--tokens", "2"])
    gc.freeze()  # A collection leaves alone what lies in memory that they share.


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())  # as of `python -m`
    from pipeinfer.cli import main

    import_all()
    if forked_when_asked(socket.socket(fileno=int(sys.argv[1]))):
        if sys.argv[0] == "pipeinfer":
            main()
        _run_parent_of_ranks()
        sys.stdout.flush()
        os._exit(0)
