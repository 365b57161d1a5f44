"""`pipeinfer cell`: one cell of a recipe, or some that follow one another, as a job of its own."""

from pathlib import Path
from typing import Annotated

import typer

from pipeinfer.commands.options import OUTPUT, SIMULATION, CellOptions, ModelOptions, option, path_option, with_options


@with_options
def cell(
    model: ModelOptions,
    which: CellOptions,
    recipe: Annotated[str, typer.Argument(help="A recipe of reproduce/, or FILE.toml.")],
    index: Annotated[int, option(SIMULATION, "Which of its cells, counted from 0.")],
    out: Annotated[
        Path, path_option(OUTPUT, "The results' folder; the record is a file in cells/ of it.", metavar="DIR")
    ],
    count: Annotated[int, option(SIMULATION, "How many, from that one on; default: 1.", min=1)] = 1,
) -> None:
    """Run cells of a recipe, but for those whose records lie there. `reproduce --emit` writes these commands."""
    from pipeinfer.cluster.mpi_world import in_mpi_world, settle
    from pipeinfer.study.jobs import run_cells
    from pipeinfer.study.recipes import read_recipe
    from pipeinfer.study.selection import Wish, select

    if in_mpi_world():
        settle(None, None, None)  # All processes but the head stay here, as ranks.
    cluster = which.cluster if read_recipe(recipe).simulated is not None else None  # What really runs, runs here.
    (chosen,) = select([recipe], Wish(which.fidelity, cluster, model.given() | which.live())).recipes
    ran = run_cells(chosen, index, count, out)
    print(f"{ran} done, {count - ran} were done already")
