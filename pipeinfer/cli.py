"""`pipeinfer`: the command line."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import typer

from pipeinfer.commands import (
    calibrate,
    cell,
    compare,
    doctor,
    generate,
    plugins,
    record,
    replay,
    reproduce,
    serve,
    simulate,
    worker,
)
from pipeinfer.commands.streams import null_device, prepare_streams
from pipeinfer.errors import LaunchError, RankLost, one_line
from pipeinfer.plugins import BrokenPlugin
from pipeinfer.runtime.transports import TransportError

app = typer.Typer(
    name="pipeinfer",
    help="Pipelined speculative LLM inference: run it, simulate it, reproduce the paper (PipeInfer, SC'24).",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(reproduce.reproduce)
app.command()(generate.generate)
app.command()(serve.serve)
app.command()(simulate.simulate)
app.command()(calibrate.calibrate)
app.command()(record.record)
app.command()(replay.replay)
app.command()(worker.worker)
app.command()(plugins.plugins)
app.command()(compare.compare)
app.command()(cell.cell)
app.command()(doctor.doctor)

USER_ERROR, RANK_LOST, NO_READER, INTERRUPTED = 2, 1, 1, 130

# typer itself does not name it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """The console script: what the user can put right is one line and exit code 2, a lost rank exit code 1."""
    # Before NumPy is loaded: ranks share the cores of this machine, and so do threads of this process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # and not ignored, as by nohup
            signal.signal(number, _leave)
    sys.exit(run(sys.argv[1:] or ["--help"]))


def _leave(number: int, _frame: object) -> NoReturn:
    """Whatever is open is closed and removed on the way out, as after Ctrl-C; the exit code is the customary one."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def run(arguments: Sequence[str]) -> int:
    """Run a command line. Gives the exit code; problems have been said in one line on standard error."""
    try:
        prepare_streams()
        code: int | None = app(arguments, prog_name="pipeinfer", standalone_mode=False)
        sys.stdout.flush()  # A full disk is better known now than while Python ends.
    except UsageError as problem:
        return _fail(_usage(problem), USER_ERROR)
    except RankLost as problem:
        return _fail(str(problem), RANK_LOST)
    except OSError as problem:
        return _system_error(problem)
    except UnicodeEncodeError as problem:
        at = len(os.fsencode(problem.object[: problem.start]))
        return _fail(f"expected UTF-8 text, came {problem.object!a}, byte {at}", USER_ERROR)
    except (LaunchError, TransportError, BrokenPlugin, ValueError) as problem:
        return _fail(str(problem), USER_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    return _fail("interrupted", INTERRUPTED) if code == INTERRUPTED else code or 0


def _usage(problem: Exception) -> str:
    """What is wrong with the command line, and where the right one is told."""
    said = problem.format_message() if hasattr(problem, "format_message") else str(problem)
    context = getattr(problem, "ctx", None)
    return f"{said.rstrip('.')}; see {context.command_path} --help" if context is not None else said


def _system_error(problem: OSError) -> int:
    if problem.errno == errno.EPIPE:  # as when `head` has read enough
        null_device(1)
        return NO_READER
    if problem.errno == errno.ENOSPC and not problem.filename:
        null_device(1)  # What is still buffered cannot be written either.
        return _fail(f"{problem.strerror}, where the output or a file of results goes", USER_ERROR)
    return _fail(f"{problem.strerror}: {problem.filename}" if problem.filename else str(problem), USER_ERROR)


def _fail(text: str, code: int) -> int:
    with suppress(OSError):
        print(f"error: {one_line(text)}", file=sys.stderr)
    return code
