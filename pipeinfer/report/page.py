"""What a report is made of."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec
import pandas as pd


class Table(msgspec.Struct, frozen=True):
    """`head` and every row have the same number of cells; `numbers`: columns that are set flush right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    title: str = ""


def compact(table: Table) -> Table:
    """Without the columns in which there is nothing."""
    kept = [at for at in range(len(table.head)) if not table.rows or any(row[at] != NOTHING for row in table.rows)]
    head, *rows = ([cells[at] for at in kept] for cells in (table.head, *table.rows))
    return Table(head, rows, [new for new, old in enumerate(kept) if old in table.numbers], table.title)


NOTHING = "-"


def number(value: float, form: str = "{:.2f}") -> str:
    """A table's cell; a dash where there is none."""
    return NOTHING if pd.isna(value) else form.format(value)


def rounded(value: float) -> str:
    """A cell, or what stands in a figure, with three significant digits: `3.30`."""
    if pd.isna(value):
        return NOTHING
    digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:.{min(3, max(0, digits))}f}"


def ends(values: Iterable[float], form: str) -> str:
    """The lowest and the highest: `1.64x to 2.06x`; one of them where they read the same."""
    known = list(values)
    return " to ".join(dict.fromkeys(form.format(value) for value in (min(known), max(known))))


Block: TypeAlias = str | Table
"""A paragraph or a table."""
