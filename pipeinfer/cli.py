"""`pipeinfer`: the command line."""

import os
import sys

import typer

from pipeinfer.commands import (
    calibrate,
    compare,
    doctor,
    generate,
    plugins,
    record,
    replay,
    reproduce,
    simulate,
    worker,
)
from pipeinfer.errors import LaunchError, RankLost, one_line
from pipeinfer.plugins import BrokenPlugin
from pipeinfer.runtime.transports import TransportError

app = typer.Typer(
    name="pipeinfer",
    help="Pipelined speculative LLM inference: run it, simulate it, reproduce the paper (PipeInfer, SC'24).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(reproduce.reproduce)
app.command()(generate.generate)
app.command()(simulate.simulate)
app.command()(calibrate.calibrate)
app.command()(record.record)
app.command()(replay.replay)
app.command()(worker.worker)
app.command()(plugins.plugins)
app.command()(compare.compare)
app.command()(doctor.doctor)

USER_ERROR, RANK_LOST, INTERRUPTED = 2, 1, 130


def main() -> None:
    """The console script: what the user can put right is one line and exit code 2, a lost rank exit code 1."""
    # Before NumPy is loaded: ranks share the cores of this machine, and so do threads of this process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app(prog_name="pipeinfer")
    except RankLost as problem:
        _fail(str(problem), RANK_LOST)
    except OSError as problem:
        _fail(f"{problem.strerror}: {problem.filename}" if problem.filename else str(problem), USER_ERROR)
    except (LaunchError, TransportError, BrokenPlugin, ValueError) as problem:
        _fail(str(problem), USER_ERROR)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)


def _fail(text: str, code: int) -> None:
    print(f"error: {one_line(text)}", file=sys.stderr)
    sys.exit(code)
