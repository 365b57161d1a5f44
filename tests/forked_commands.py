"""Processes of the command line that are forked from one that has imported it, which takes most of the time in which a
command starts. Each is a process like any other, in a process group of its own; but its parent is that one, which says
how it has ended.

Run by itself, this file is the process that they are forked from.
"""

import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any

REQUEST, STATUS = 1 << 20, 64
"""Bytes of a request, and of what is said of a process, at the most."""


class ForkedCommand:
    """`pipeinfer ARGUMENTS`, with nothing on its standard input; used as a `subprocess.Popen`. To it `missing` is a
    module that is not installed."""

    returncode: int | None = None

    def __init__(self, *arguments: str, stderr: IO[str] | int = subprocess.PIPE, missing: str = "") -> None:
        self.args = ["pipeinfer", *arguments]
        self._status, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stdout, output = _pipe()
        self.stderr, errors = _pipe() if stderr == subprocess.PIPE else (None, os.dup(stderr.fileno()))
        request = {
            "arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "missing": missing,
        }  # fmt: skip
        with told:
            socket.send_fds(_forking(), [json.dumps(request).encode()], [output, errors, told.fileno()])
        os.close(output)
        os.close(errors)
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

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # It has ended, which is about to be said.
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _pipe() -> tuple[IO[str], int]:
    """The end from which this process reads, and the other one."""
    here, there = os.pipe()
    return os.fdopen(here, encoding="utf-8"), there


_parent: list[tuple["subprocess.Popen[bytes]", socket.socket]] = []


def _forking() -> socket.socket:
    """Where the process that they are forked from, which is started for the first, takes requests."""
    if not _parent:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            command = [sys.executable, __file__, str(there.fileno()), "pipeinfer"]  # as which `ps` shows them all
            process = subprocess.Popen(command, pass_fds=[there.fileno()], start_new_session=True)
        _parent.append((process, here))
    return _parent[0][1]


def end_forking() -> None:
    """End the process that they are forked from, if one was started."""
    while _parent:
        process, requests = _parent.pop()
        requests.close()
        process.wait()


# The process that they are forked from


def forked_when_asked(requests: socket.socket) -> bool:
    """Returns True in each process that is to be a command, and False in this one when no more will be asked for."""
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
                said, files, _, _ = socket.recv_fds(requests, REQUEST, 3)
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
    output, errors, told = files
    os.setsid()
    os.close(told)
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (errors, 2)):
        os.dup2(file, number)
        os.close(file)
    # Those that were there were told of other files whether one may seek in them.
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None
    sys.argv = ["pipeinfer", *asked["arguments"]]
    if missing := asked["missing"]:
        assert missing not in sys.modules
        sys.modules[missing] = None  # type: ignore[assignment]


def import_all() -> None:
    """What workers and heads take, but for engines: they have threads, which live through no fork. Servers take more,
    which the others would look at in each garbage collection."""
    import pipeinfer.cluster.processes
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
        main()
