"""Two sets of results side by side: is the head slower than the base, or is the machine noisy?

Trials with the same configuration are one cell, however often it was repeated. Repetition i of the base is paired with
repetition i of the head, so that runs which took turns share what else the machine did.
"""

from pathlib import Path

import msgspec

from pipeinfer.results.compare.judge import CONFIDENCE, THRESHOLD, WORSE, Judge, Row
from pipeinfer.results.compare.pair import notes, pair
from pipeinfer.results.compare.read import read
from pipeinfer.workload import WorkloadError


class Comparison(msgspec.Struct, frozen=True):
    """All rows; `notes` are what a reader should know besides."""

    base: str
    head: str
    threshold: float
    confidence: float
    rows: list[Row]
    notes: list[str]

    @property
    def worse(self) -> list[Row]:
        """The rows that speak against the head."""
        return [row for row in self.rows if row.verdict in WORSE]


def compare(
    base: Path, head: Path, *, common: bool = False, threshold: float = THRESHOLD, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two files or folders. A cell that only one of them has is an error, or left out with `common`.

    Raises WorkloadError: nothing to read, not results, or different workloads.
    """
    before, after = read(base), read(head)
    if ("median_s" in before.rows) != ("median_s" in after.rows):
        raise WorkloadError(f"{base} and {head} are not of one kind: trials here, results of pytest-benchmark there")
    both = pair(before, after, common=common)
    rows = Judge(threshold, confidence).rows(both)
    told = list(notes(before, after, both.cell.nunique()))
    return Comparison(before.name, after.name, threshold, confidence, rows, told)
