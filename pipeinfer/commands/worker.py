"""`pipeinfer worker`: one rank on this host, for a head elsewhere."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from pipeinfer.commands.options import PIPELINE, option, path_option


def worker(
    key: Annotated[Path | None, path_option(PIPELINE, "The cluster's key file, the same on every host.")] = None,
    rank: Annotated[
        int | None,
        option(PIPELINE, "Be this rank alone: target stages are 0, 1, ...; then the draft's.", min=0, max=65535),
    ] = None,
    listen: Annotated[str | None, option(PIPELINE, "Where the head and the other ranks reach this one.")] = None,
    new_key: Annotated[
        bool, option(PIPELINE, "Make the key file first; without --listen, that is all.", "--new-key")
    ] = False,
    once: Annotated[bool, option(PIPELINE, "Leave after one session.", "--once")] = False,
) -> None:
    """Serve as the rank that a head says until interrupted; `generate --workers` points a head at it.

    Example: pipeinfer worker --listen tcp://10.0.0.7:5555 --key cluster.key
    """
    from pipeinfer.cluster.worker import serve
    from pipeinfer.runtime.transports import scheme_of, takes_keys
    from pipeinfer.runtime.transports.keys import write_keys

    if listen is None and (rank is not None or not new_key):
        raise ValueError("a worker needs --listen; without it, --new-key makes the key file and ends")
    if key is None and (new_key or takes_keys(scheme_of(listen or ""))):
        raise ValueError("a worker needs --key, the cluster's key file; with --new-key it is made first")
    if new_key and key is not None:
        write_keys(key)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # A worker has nothing to remove, and an engine may compute for long.
    if listen is not None:
        raise typer.Exit(serve(listen, rank, key, once=once))
