"""What a trial leaves behind, every metric that is derived from it, and tables of many."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeinfer.results.frame import Tables


def load(folder: "str | Path") -> "Tables":
    """The tables that `pipeinfer reproduce` wrote into a folder, as pandas data frames: `trials`, and `gaps`, `ranks`
    and `spans`, joined to it by config_hash. docs/results.md lists the columns. Raises FileNotFoundError."""
    from pipeinfer.results.frame import read_tables  # pandas, which ranks and simulations do without

    return read_tables(Path(folder))
