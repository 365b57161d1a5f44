"""`pipeinfer worker`: one rank on this host, for a head elsewhere."""

from pathlib import Path
from typing import Annotated

import typer


def worker(
    rank: Annotated[int, typer.Option(help="This rank's number: target stages are 0, 1, ...; then the draft's.")],
    listen: Annotated[str, typer.Option(help="Where the head and the other ranks reach this one.")],
    key: Annotated[Path, typer.Option(help="The cluster's key file, the same on every host.")],
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key file first; copy it to every host.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Leave after one session.")] = False,
) -> None:
    """Serve as one rank until interrupted; `generate --workers` points a head at it.

    Example: pipeinfer worker --rank 0 --listen tcp://10.0.0.7:5555 --key cluster.key
    """
    from pipeinfer.transports.keys import write_keys
    from pipeinfer.worker import serve

    if new_key:
        write_keys(key)
    raise typer.Exit(serve(listen, rank, key, once=once))
