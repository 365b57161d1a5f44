"""`pipeinfer reproduce`: the paper's claims, each with a figure and a verdict."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from pipeinfer.reproduce.claims import Claim
    from pipeinfer.reproduce.recipes import Recipe
    from pipeinfer.reproduce.report import Table as ReportTable

ORDER = ("live", "timeline", "speed", "pairs", "width", "accounting")
"""What is run first; other recipes follow by name."""

SHOWN_COLUMNS = 6
"""How much of a report's table a terminal is shown: where, strategy, speed, two ratios, mean gap."""


def reproduce(
    sections: Annotated[list[str] | None, typer.Argument(help="Recipes of reproduce/; default: all of them.")] = None,
    fidelity: Annotated[str | None, typer.Option(help="Only recipes of this fidelity: sim or real.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for records, figures and reports. Run again to resume.")] = Path(
        "results"
    ),
    jobs: Annotated[int, typer.Option(help="Processes for simulations; 0: one per core.", min=0)] = 0,
) -> None:
    """Reproduce the paper: simulate, run live, draw, and judge every claim."""
    from rich.console import Console

    from pipeinfer.reproduce.records import Store
    from pipeinfer.reproduce.run import check, conclude, run

    recipes = _recipes(sections, fidelity)
    check(recipes)
    store = Store(out)
    console = Console()
    with _progress(console) as progress:
        tasks = {recipe.name: progress.add_task(recipe.title, total=None, start=False) for recipe in recipes}

        def on_progress(recipe: "Recipe", done: int, total: int) -> None:
            if not progress.tasks[tasks[recipe.name]].started:
                progress.start_task(tasks[recipe.name])
            progress.update(tasks[recipe.name], completed=done, total=total)
            progress.refresh()

        for recipe in recipes:
            run(recipe, store, jobs or _cores(), on_progress)
    with console.status("drawing and writing the report"):
        claims, live = conclude(recipes, store, out)
    for table in live:
        _print_table(console, table)
    _print(console, claims, out)


def _recipes(sections: list[str] | None, fidelity: str | None) -> "list[Recipe]":
    from pipeinfer.reproduce.recipes import read_recipe, recipe_names
    from pipeinfer.workload import WorkloadError

    if fidelity not in (None, "sim", "real"):
        raise WorkloadError(f'fidelity "{fidelity}": expected sim or real')
    names = sections or sorted(recipe_names(), key=lambda name: (*ORDER, name).index(name))
    found = [recipe for recipe in map(read_recipe, dict.fromkeys(names)) if fidelity in (None, recipe.fidelity)]
    if not found:
        raise WorkloadError(f"none of {', '.join(names)} has fidelity {fidelity}")
    return found


def _progress(console: "Console") -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    # Redrawn when a cell ends and never beside one: what is being timed has the cores to itself.
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=console, auto_refresh=False,
    )  # fmt: skip


def _print_table(console: "Console", table: "ReportTable") -> None:
    from rich.table import Table

    shown = Table(title="Really run on this machine")
    for column, name in enumerate(table.head[:SHOWN_COLUMNS]):
        shown.add_column(name, justify="right" if column in table.numbers else "left")
    for row in table.rows:
        shown.add_row(*row[:SHOWN_COLUMNS])
    console.print(shown)


def _print(console: "Console", claims: "list[Claim]", out: Path) -> None:
    from rich.table import Table

    colours = {"reproduced": "green", "partly": "yellow", "not reproduced": "red"}
    table = Table("claim", "", "published", "found here", "verdict", show_lines=True)
    for claim in claims:
        colour = colours.get(claim.verdict, "dim")
        table.add_row(claim.id, claim.claim, claim.published, claim.reproduced, f"[{colour}]{claim.verdict}[/]")
    console.print(table)
    console.print(f"Evidence: {out / 'report.html'}   Records: {out / 'trials.jsonl'}", highlight=False, soft_wrap=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
