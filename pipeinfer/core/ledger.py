"""The KV ledger: what every stage's cache holds, in stream order, kept by whoever schedules.

A cell is a node of a trie: its parent is the cell of the position before it. A sequence id points at its last cell, so
the text that a sequence sees is the path to the root, copying tags is one pointer, and a cell is free as soon as no
sequence's path runs through it. Each operation checks its invariant *before* it is sent and is queued in `pending`, to
travel with the next run. KV operations and runs share one ordered stream, so what the ledger says is what each stage
will hold when it gets there.
"""

from collections.abc import Sequence
from typing import cast

import msgspec

from pipeinfer.core.errors import OurError
from pipeinfer.core.messages import TO_THE_END, KvOp, KvSeqCp, KvSeqRm

CANONICAL = 0
"""The sequence id that holds the committed text of the first request; the others have ids of their own."""


class LedgerError(OurError):
    """An operation would break an invariant: a bug in whoever asked for it, caught before any stage saw it."""


class KvCell(msgspec.Struct, eq=False):
    """One KV cell: `refs` counts the sequences that end here plus the cells that continue it."""

    position: int
    parent: "KvCell"
    refs: int


class LastCells(dict[int, KvCell]):
    """The last cell of each sequence id in use."""

    def __missing__(self, sequence: int) -> KvCell:
        raise LedgerError(f"sequence {sequence} is not in use")


class Ledger:
    """The cells and sequences of one model's caches: `capacity` cells, sequence ids 0 to `sequences` - 1."""

    def __init__(self, capacity: int, sequences: int) -> None:
        self.capacity = capacity
        self.sequences = sequences
        self.free = capacity
        self.pending: list[KvOp] = []
        self._root = KvCell(-1, cast(KvCell, None), 1)  # nobody asks what is before it
        self._last = LastCells()

    @property
    def used(self) -> int:
        return self.capacity - self.free

    def holds(self, sequence: int) -> bool:
        """The id is in use."""
        return sequence in self._last

    def length(self, sequence: int) -> int:
        """Positions [0, length) are what `sequence` holds."""
        return self._last[sequence].position + 1

    def begin(self, sequence: int) -> None:
        """Take the unused id `sequence`, which holds nothing yet."""
        self._unused(sequence)
        self._last[sequence] = self._root
        self._root.refs += 1

    def fork(self, source: int, target: int, stop: int) -> None:
        """Give the unused id `target` the cells of `source` at [0, stop)."""
        self._unused(target)
        cell = self._last[source]
        while cell.position >= stop:
            cell = cell.parent
        if cell.position != stop - 1:
            raise LedgerError(f"sequence {source} ends at {cell.position}, so nothing can continue it at {stop}")
        self._last[target] = cell
        cell.refs += 1
        if stop:
            self.pending.append(KvSeqCp(source, target, 0, stop))

    def extend(self, sequences: Sequence[int], position: int) -> None:
        """One row at `position`, tagged with `sequences`, which must share their last cell, at `position` - 1."""
        last, count = self._last[sequences[0]], len(sequences)
        if last.position != position - 1 or (count > 1 and any(self._last[one] is not last for one in sequences)):
            raise LedgerError(f"row at {position} does not continue every sequence of {sequences}")
        if self.free < 1:
            raise LedgerError(f"all {self.capacity} cells are in use")
        cell = KvCell(position, last, count)
        self.free -= 1
        for sequence in sequences:
            self._last[sequence] = cell
        if count > 1:  # Each of them ended at `last`, which the new cell continues.
            last.refs += 1 - count

    def promote(self, source: int, position: int, into: int) -> None:
        """Tag the cell of `source` at `position` with `into` too, which must end at the cell before it."""
        cell, last = self._last[source], self._last[into]
        while cell.position > position:
            cell = cell.parent
        if cell.position != position or cell.parent is not last:
            raise LedgerError(f"position {position} of sequence {source} does not continue sequence {into}")
        self._last[into] = cell
        cell.refs += 1
        last.refs -= 1
        self.pending.append(KvSeqCp(source, into, position, position + 1))

    def cut(self, sequence: int, stop: int) -> None:
        """Take the id off its cells from position `stop` on."""
        last = cell = self._last[sequence]
        while cell.position >= stop:
            cell = cell.parent
        if cell is not last:
            self._last[sequence] = cell
            cell.refs += 1
            last.refs -= 1
            if not last.refs:
                self._drop(last)
            self.pending.append(KvSeqRm(sequence, stop, TO_THE_END))

    def release(self, *sequences: int) -> None:
        """Take these ids off all their cells and give them back."""
        last, root = self._last, self._root
        for sequence in sequences:
            cell = last[sequence]
            del last[sequence]
            cell.refs -= 1
            if not cell.refs:
                self._drop(cell)
            if cell is not root:
                self.pending.append(KvSeqRm(sequence, 0, TO_THE_END))

    def take_pending(self) -> tuple[KvOp, ...]:
        """The operations that must travel with (before) the next run."""
        ops = tuple(self.pending)
        self.pending.clear()
        return ops

    def validate(self) -> None:
        """Recount everything; raises LedgerError. For tests: O(cells)."""
        reachable = {self._root}
        for last in self._last.values():
            cell = last
            while cell not in reachable:
                reachable.add(cell)
                cell = cell.parent
        cells = len(reachable) - 1
        if cells != self.used or not 0 <= cells <= self.capacity:
            raise LedgerError(f"{cells} cells are reachable, {self.used} counted, {self.capacity} exist")

    def _unused(self, sequence: int) -> None:
        if sequence in self._last or not 0 <= sequence < self.sequences:
            raise LedgerError(f"sequence {sequence} is in use or outside 0..{self.sequences - 1}")

    def _drop(self, cell: KvCell) -> None:
        """Nothing ends at this cell or continues it: it is free, and with it what was there for it alone."""
        while not cell.refs:
            self.free += 1
            cell = cell.parent
            cell.refs -= 1
