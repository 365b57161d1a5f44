"""`pipeinfer compare`: is one result slower than another?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeinfer.commands.options import OUTPUT, STATISTICS, AsJson, option, path_option

if TYPE_CHECKING:
    from rich.table import Table

    from pipeinfer.results.compare import Comparison
    from pipeinfer.results.compare.judge import Row

MOST_ROWS = 60
"""A longer table leaves out the cells in which nothing changed."""

COLOURS = {"regression": "red", "other tokens": "red", "failed": "red", "improvement": "green", "no change": "dim"}


def compare(
    base: Annotated[Path, typer.Argument(help="trials.jsonl, pytest-benchmark's JSON, or a folder of one kind.")],
    head: Annotated[Path, typer.Argument(help="What is compared with it.")],
    threshold: Annotated[float, option(STATISTICS, "The smallest change that counts; default: 0.05.", min=0.0)] = 0.05,
    confidence: Annotated[float, option(STATISTICS, "Of the intervals; default: 0.95.", min=0.5, max=0.9999)] = 0.95,
    common: Annotated[bool, option(STATISTICS, "Leave out cells that only one of them has.", "--common")] = False,
    plot: Annotated[Path | None, path_option(OUTPUT, "Draw the ratios: writes this name as .svg and .png.")] = None,
    fail: Annotated[bool, option(OUTPUT, "Exit with 1 if the head is worse.", "--fail-on-regression")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two results cell by cell: ratio head / base, interval, verdict."""
    from pipeinfer.commands.output import print_json
    from pipeinfer.results.compare import compare as compare_results

    comparison = compare_results(base, head, common=common, threshold=threshold, confidence=confidence)
    if plot is not None:
        from pipeinfer.report.comparison import draw

        draw(comparison, plot)
    if as_json:
        print_json(comparison)
    else:
        _show(comparison)
    if fail and comparison.worse:
        raise typer.Exit(1)


def _show(comparison: "Comparison") -> None:
    from rich.text import Text

    from pipeinfer.commands.output import console

    terminal = console()
    rows = comparison.rows
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row.verdict != "no change"]
        terminal.print(f"{len(comparison.rows) - len(rows)} rows without a change are not shown.", style="dim")
    for metric in dict.fromkeys(row.metric for row in rows):
        terminal.print(_table(metric, [row for row in rows if row.metric == metric], comparison.confidence))
    for note in comparison.notes:
        terminal.print(Text("note:", "yellow"), note, soft_wrap=True)
    worse = len(comparison.worse)
    terminal.print(f"{worse} of {len(comparison.rows)} rows speak against {comparison.head}", soft_wrap=True)


def _table(metric: str, rows: "list[Row]", confidence: float) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=metric, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("cell", overflow="fold")
    for heading in ("base", "head", "ratio", f"{confidence * 100:g} % interval", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        interval = "-" if row.low is None else f"{row.low:.3f} to {row.high:.3f}"
        numbers = [_number(row.base, ".3g"), _number(row.head, ".3g"), _number(row.ratio, ".3f"), interval]
        verdict = Text(row.verdict, COLOURS.get(row.verdict, "yellow"))
        table.add_row(row.cell, *numbers, str(row.pairs or "-"), verdict)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
