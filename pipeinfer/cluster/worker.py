"""The process of one rank, `pipeinfer worker`, and those of a head, `python -m pipeinfer.cluster.worker`."""

import argparse
import gc
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from pipeinfer.cluster.forked_ranks import ForkedRanks, Say
from pipeinfer.cluster.garbage_collection import look_at_trials_alone
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import BACKENDS, TRANSPORTS, load
from pipeinfer.runtime.live import Stray, run_rank
from pipeinfer.runtime.transports import ANY_RANK, HEAD, PeerLost, TransportError, open_member, scheme_of


def announce(line: str) -> None:
    print(line, flush=True)


def serve(
    listen: str, rank: int | None, key: Path | None, *, once: bool, pulse: bool = True, say: Say = announce
) -> int:
    """Listen at `listen` as `rank` (None: as each head says) and serve one session after another (`once`: just one).
    Exit code. `pulse`: over a transport that would wait for a stopped process, others feel that this one runs.

    Says `listening ADDRESS` when it can be reached, and prints a line on standard error when a session was not ended by
    its head. Each session has an endpoint of its own at the same address: a stream that broke is never taken up again.
    """
    if once:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # It is run between trials, where it is not measured.
    came = False
    while not (once and came):
        transport = open_member(listen, ANY_RANK if rank is None else rank, keys=key, pulse=pulse)
        listen = transport.address
        say(f"listening {listen}")
        try:
            came = run_rank(transport, loaded=look_at_trials_alone)
            if once and not came:
                return 1
        except Stray as stray:
            _say(f"ignored: {stray}")
        except (PeerLost, LaunchError) as problem:
            came = True
            if not once:
                gone = isinstance(problem, PeerLost) and problem.rank == HEAD
                _say(f"session ended: {'the head is gone' if gone else problem}")
        except Exception:
            if once:
                raise
            came = True
            traceback.print_exc()  # The head was told; the next one may ask for something that works.
        finally:
            transport.close()
        if not once:
            gc.unfreeze()
            gc.collect()
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """The launcher's way in; light on imports, as every session pays for them."""
    parser = argparse.ArgumentParser(prog="python -m pipeinfer.cluster.worker", description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--backend", default="")
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()

    def run(rank: int, say: Say) -> int:
        try:
            return serve(arguments.listen, rank, arguments.key, once=True, pulse=False, say=say)  # The head sees it.
        except TransportError as problem:
            print(problem, file=sys.stderr)
            return 2

    load(TRANSPORTS, scheme_of(arguments.listen))
    if arguments.backend:
        with suppress(ImportError):  # Each rank says what is missing, and how to have it.
            load(BACKENDS, arguments.backend).prepare(arguments.models)
    ForkedRanks(run, arguments.logs).serve()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # The launcher waits, and taking modules apart would be for nothing.
