"""What a report is made of."""

from collections.abc import Sequence
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


Block: TypeAlias = str | Table | Picture
"""A paragraph, a table, a figure."""
