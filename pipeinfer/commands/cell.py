"""`pipeinfer cell`: one cell of a recipe, as a job of its own."""

from pathlib import Path
from typing import Annotated

import typer

from pipeinfer.commands.options import OUTPUT, SIMULATION, option, path_option


def cell(
    recipe: Annotated[str, typer.Argument(help="A recipe of reproduce/, or FILE.toml.")],
    index: Annotated[int, option(SIMULATION, "Which of its cells, counted from 0.")],
    out: Annotated[Path, path_option(OUTPUT, "The results' folder; the record is a file in cells/ of it.")],
    fidelity: Annotated[str | None, option(SIMULATION, "As for reproduce.")] = None,
    cluster: Annotated[str | None, option(SIMULATION, "As for reproduce.")] = None,
) -> None:
    """Run one cell of a recipe, unless its record lies there. `reproduce --emit` writes these commands."""
    from pipeinfer.study.jobs import run_cell
    from pipeinfer.study.selection import Wish, select

    (chosen,) = select([recipe], Wish(fidelity, cluster)).recipes
    print("done" if run_cell(chosen, index, out) else "was done already")
