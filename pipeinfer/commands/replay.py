"""`pipeinfer replay`: a head's event log, through a fresh head."""

from pathlib import Path
from typing import Annotated

import typer

from pipeinfer.commands.options import OUTPUT, option


def replay(
    log: Annotated[Path, typer.Argument(help="What `generate` or `serve` wrote with --log.")],
    effects: Annotated[bool, option(OUTPUT, "Print each event's effects, a JSON list a line.", "--effects")] = False,
) -> None:
    """Replay an event log: the same events must have the same effects. Exit code 1 where they do not."""
    import msgspec

    from pipeinfer.core.errors import ProtocolError
    from pipeinfer.plugins import open_drafting, open_strategy
    from pipeinfer.runtime.event_log import ReplayDiffers
    from pipeinfer.runtime.event_log import replay as run

    try:
        replayed = run(log.read_bytes().splitlines(), open_strategy, open_drafting)
    except msgspec.DecodeError as problem:
        raise ValueError(f"{log} is not an event log: {problem}") from problem
    except (ReplayDiffers, ProtocolError) as problem:
        print(f"diverged: {problem}")
        raise typer.Exit(1) from problem
    if effects:
        for had in replayed:
            print(msgspec.json.encode(had).decode())
    else:
        print(f"{len(replayed)} events had {sum(map(len, replayed))} effects, the same as then")
