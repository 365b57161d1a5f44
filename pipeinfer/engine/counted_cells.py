"""How many KV cells are free, for a stage that need not know which: llama.cpp has its own, but rounds their number up
and does not say how many are in use, and an emulated stage holds nothing.

Counting lags behind: what happens to the cells is noted, and worked through when the cells that are surely free do not
suffice, or many notes have piled up. Arrays that were touched last before a decode are no longer in the processor's
cache after it, so that keeping them up to date each time costs several times as much as doing it at one go.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from pipeinfer.core.messages import KvOp, KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import CellsFull
from pipeinfer.engine.kv_cells import between, check_sequences

Tags: TypeAlias = tuple[int, ...]
NOTES = 64


class Entered(NamedTuple):
    """Rows that were put into free cells."""

    positions: Sequence[int]
    sequences: Sequence[Tags]


class CountedCells:
    """Tags of `cells` cells for sequence ids 0..sequences-1, with llama.cpp's semantics."""

    def __init__(self, cells: int, sequences: int) -> None:
        self._tags = np.zeros((sequences, cells), bool)
        self._positions = np.zeros(cells, np.int64)
        self._surely_free = cells
        self._notes: list[KvOp | Entered] = []

    @property
    def count(self) -> int:
        return len(self._positions)

    def grow(self, cells: int) -> None:
        """More of them, the new ones free."""
        self._catch_up()
        more = cells - self.count
        self._tags = np.pad(self._tags, ((0, 0), (0, more)))
        self._positions = np.pad(self._positions, (0, more))
        self._surely_free += more

    def take(self, positions: Sequence[int], sequences: Sequence[Tags]) -> None:
        """A batch of one row per position enters. Raises CellsFull or ValueError, and then changes nothing."""
        check_sequences([sequence for row in sequences for sequence in row], len(self._tags))
        rows = len(positions)
        if rows > self._surely_free or len(self._notes) >= NOTES:
            self._catch_up()
        if rows > self._surely_free:
            raise CellsFull(f"expected {rows} free KV cells, came {self._surely_free} of {len(self._positions)}:"
                            " remove sequences first or load the stage with more cells")
        self._notes.append(Entered(positions, sequences))
        self._surely_free -= rows

    def give_back(self) -> None:
        """The batch that entered last was not computed."""
        entered = self._notes.pop()
        assert isinstance(entered, Entered)
        self._surely_free += len(entered.positions)

    def apply(self, op: KvOp) -> None:
        """Change tags as `op` says. Raises ValueError for a sequence id that is out of range."""
        check_sequences((op.src, op.dst) if isinstance(op, KvSeqCp) else (op.sequence,), len(self._tags))
        self._notes.append(op)

    def clear(self) -> None:
        self._notes.clear()
        self._tags[:] = False
        self._surely_free = len(self._positions)

    def _catch_up(self) -> None:
        entered: list[Entered] = []
        for note in self._notes:
            if isinstance(note, Entered):
                entered.append(note)
                continue
            self._fill(entered)
            entered.clear()
            match note:
                case KvSeqCp(src, dst, start, stop):
                    self._tags[dst] |= self._tags[src] & between(self._positions, start, stop)
                case KvSeqRm(sequence, start, stop):
                    self._tags[sequence] &= ~between(self._positions, start, stop)
        self._fill(entered)
        self._notes.clear()
        self._surely_free = int(np.count_nonzero(~self._tags.any(axis=0)))

    def _fill(self, entered: Sequence[Entered]) -> None:
        """Tag free cells with the rows that entered one after another."""
        positions = [position for batch in entered for position in batch.positions]
        sequences = [row for batch in entered for row in batch.sequences]
        if not positions:
            return
        cells = np.flatnonzero(~self._tags.any(axis=0))[: len(positions)]
        self._positions[cells] = positions
        self._tags[[tag for row in sequences for tag in row], np.repeat(cells, [len(row) for row in sequences])] = True
