"""What a report is made of."""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec


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


Block: TypeAlias = str | Table | Picture
"""A paragraph, a table, a figure."""
