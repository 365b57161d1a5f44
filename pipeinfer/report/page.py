"""What a report is made of."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import pandas as pd


class Table(msgspec.Struct, frozen=True):
    """`head` and every row have the same number of cells; `numbers`: columns that are set flush right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    title: str = ""


Columns: TypeAlias = Mapping[str, tuple[str, str | Callable[[Any], str]]]
"""By a data frame's columns: what each is called in a table, and the format or the function that writes its numbers,
which are set flush right; "" where it has words."""


def table_of(found: pd.DataFrame, columns: Columns, title: str = "") -> Table:
    """Row by row, without the columns in which there is nothing."""
    written = {name: [_cell(value, form) for value in found[name]] for name, (_, form) in columns.items()}
    kept = [name for name, cells in written.items() if not cells or any(cell != NOTHING for cell in cells)]
    numbers = [at for at, name in enumerate(kept) if columns[name][1]]
    rows = pd.DataFrame({name: written[name] for name in kept}, dtype=object).to_numpy().tolist()
    return Table([columns[name][0] for name in kept], rows, numbers, title)


def _cell(value: Any, form: str | Callable[[Any], str]) -> str:
    if isinstance(form, str):
        return number(value, form) if form else str(value)
    return form(value)


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


def in_ms(seconds: float) -> str:
    """The same of a time, in milliseconds."""
    return rounded(1e3 * seconds)


def ends(values: Iterable[float], form: str) -> str:
    """The lowest and the highest: `1.64x to 2.06x`; one of them where they read the same."""
    known = list(values)
    return " to ".join(dict.fromkeys(form.format(value) for value in (min(known), max(known))))


Block: TypeAlias = str | Table
"""A paragraph or a table."""
