"""The process of one rank: `python -m pipeinfer.cluster.worker` and `pipeinfer worker`."""

import argparse
import gc
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from pipeinfer.cluster.garbage_collection import look_at_trials_alone
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.live import Stray, run_rank
from pipeinfer.runtime.transports import ANY_RANK, HEAD, PeerLost, TransportError, open_member


def serve(listen: str, rank: int | None, key: Path | None, *, once: bool, pulse: bool = True) -> int:
    """Listen at `listen` as `rank` (None: as each head says) and serve one session after another (`once`: just one).
    Exit code. `pulse`: over a transport that would wait for a stopped process, others feel that this one runs.

    Prints `listening ADDRESS` when it can be reached, and a line on standard error when a session was not ended by its
    head. Each session has an endpoint of its own at the same address: a stream that broke is never taken up again.
    """
    if once:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # It is run between trials, where it is not measured.
    came = False
    while not (once and came):
        transport = open_member(listen, ANY_RANK if rank is None else rank, keys=key, pulse=pulse)
        listen = transport.address
        print(f"listening {listen}", flush=True)
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


def main() -> int:
    """The launcher's way in; light on imports, as every rank pays for them."""
    parser = argparse.ArgumentParser(prog="python -m pipeinfer.cluster.worker", description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--key", type=Path, required=True)
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        return serve(arguments.listen, arguments.rank, arguments.key, once=True, pulse=False)  # The head sees it.
    except TransportError as problem:
        print(problem, file=sys.stderr)
        return 2


def _end_with_launcher() -> None:
    """The launcher holds the other end of standard input: when that closes it is gone, however it went."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # The launcher waits, and taking modules and models apart would be for nothing.
