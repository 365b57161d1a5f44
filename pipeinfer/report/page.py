"""What a report is made of."""

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


class Picture(msgspec.Struct, frozen=True):
    """`figures/name.svg` of the results folder."""

    name: str
    title: str


def number(value: float, form: str = "{:.2f}") -> str:
    """A table's cell; a dash where there is none."""
    return "-" if pd.isna(value) else form.format(value)


def ends(values: Iterable[float], form: str) -> str:
    """The lowest and the highest: `1.64x to 2.06x`; one of them where they read the same."""
    known = list(values)
    return " to ".join(dict.fromkeys(form.format(value) for value in (min(known), max(known))))


Block: TypeAlias = str | Table
"""A paragraph or a table."""
