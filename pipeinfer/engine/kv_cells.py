"""Which KV cell holds what: a position and the sequence ids that may see it. The tensors themselves are the backend's.

Semantics are llama.cpp's: copying a sequence only adds tags, and a cell without tags is free.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import TO_THE_END, KvOp, KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import Batch, CellsFull, Hidden

Taken = slice | NDArray[np.intp]
"""Cells of a batch, in row order: a slice where they are neighbours, which NumPy indexes faster, else their numbers."""

Run = Callable[[Batch, Hidden | None, Taken], Hidden | None]
"""Computes a batch with the hidden states that came for it, into these cells."""

SEEN, HIDDEN = np.float32(0), np.float32(-np.inf)


class Cells:
    """Tags and positions of `cells` cells for sequence ids 0..sequences-1."""

    def __init__(self, cells: int, sequences: int) -> None:
        self.window = 0
        """One past the highest cell in use: attention looks no further."""
        self._tags = np.zeros((sequences, cells), bool)
        self._positions = np.zeros(cells, np.int64)
        self._holders = np.zeros(cells, np.int32)  # how many sequences tag each cell; 0 is free
        self._spoilt = np.zeros(cells, bool)
        self._used = 0

    def take(self, positions: Sequence[int], sequences: Sequence[tuple[int, ...]]) -> Taken:
        """Tag the lowest free cells, one per row. Raises CellsFull or ValueError, and then changes nothing."""
        check_sequences([sequence for row in sequences for sequence in row], len(self._tags))
        cells = self._free(len(positions))
        # One by one: that is a few rows as a rule, for which NumPy's ways of taking many at once cost far more.
        for cell, position, row in zip(cells, positions, sequences, strict=True):
            for sequence in row:
                self._tags[sequence, cell] = True
            self._positions[cell] = position
            self._spoilt[cell] = False
            self._holders[cell] = len(set(row))
        self._used += len(cells)
        self.window = max(self.window, cells[-1] + 1)
        neighbours = cells[-1] - cells[0] == len(cells) - 1
        return slice(cells[0], cells[-1] + 1) if neighbours else np.asarray(cells, np.intp)

    def _free(self, rows: int) -> Sequence[int]:
        """The lowest `rows` free cells. Raises CellsFull."""
        count, window = len(self._holders), self.window
        if count - self._used < rows:
            raise CellsFull(f"expected {rows} free KV cells, came {count - self._used} of {count}:"
                            " remove sequences first or load the stage with more cells")
        if self._used == window:
            return range(window, window + rows)
        return cast(list[int], np.flatnonzero(self._holders == 0)[:rows].tolist())

    def compute(self, batch: Batch, run: Callable[[Taken], Hidden | None]) -> Hidden | None:
        """What `run` gives with the cells of a batch, which are given back where it gives nothing or fails. Raises as
        `take` does."""
        taken = self.take(batch.positions, batch.sequences)
        result = None
        try:
            result = run(taken)
        finally:
            if result is None:
                self.free(taken)
        return result

    def compute_apart(
        self, batch: Batch, hidden: Hidden | None, run: Run, wipe: Callable[[Taken], None]
    ) -> Hidden | None:
        """The same, where rows that are not finite spoil only what sees them.

        What a row may not see is multiplied by 0, which does not help where it is NaN: so where a result is not finite
        the rows of a run that may be guesses are computed again one by one. `wipe` sets cells to 0, first all of theirs
        and then those of the rows that are to blame, and whatever sees these is NaN. It does so as well where a run was
        stopped, and nobody will know what it left in its cells.
        """

        def run_apart(taken: Taken) -> Hidden | None:
            result = run(batch, hidden, taken)
            if result is not None and batch.outputs == len(batch.tokens) and not is_finite(result):
                result = self._one_by_one(batch, hidden, taken, run, wipe)
            if result is None:
                wipe(taken)
            return result

        result = self.compute(batch, run_apart)
        if result is not None and self._spoilt.any():
            result[self._sees_spoilt(batch)[len(batch.tokens) - len(result) :]] = np.nan
        return result

    def _one_by_one(
        self, batch: Batch, hidden: Hidden | None, taken: Taken, run: Run, wipe: Callable[[Taken], None]
    ) -> Hidden | None:
        wipe(taken)
        results = []
        for row, cell in enumerate(np.arange(len(self._holders))[taken].tolist()):
            own, at = slice(cell, cell + 1), slice(row, row + 1)
            alone = Batch(batch.tokens[at], batch.positions[at], batch.sequences[at], 1)
            result = run(alone, None if hidden is None else hidden[at], own)
            if result is None:
                return None
            if not is_finite(result):
                wipe(own)
                self._spoilt[cell] = True
            results.append(result)
        return np.concatenate(results)

    def _sees_spoilt(self, batch: Batch) -> NDArray[np.bool_]:
        """Which rows see a cell that held numbers that are not finite."""
        seen = self.mask(batch.positions, batch.sequences) == SEEN
        return np.asarray((seen & self._spoilt[: self.window]).any(axis=1))

    def free(self, taken: Taken) -> None:
        """Give the cells of a batch back."""
        self._tags[:, taken] = False
        self._holders[taken] = 0
        self._recount()

    def mask(
        self, positions: Sequence[int], sequences: Sequence[tuple[int, ...]], reach: int | None = None
    ) -> Hidden:
        """What each row may attend to, to be added to its scores: float32 [rows, window] of 0 and minus infinity.

        A row sees the cells that carry its first sequence id, up to its own position; with a sliding window only the
        last `reach` positions, its own among them.
        """
        tagged = self._tags[[row[0] for row in sequences], : self.window]
        ages = np.asarray(positions)[:, None] - self._positions[: self.window]
        seen = tagged & (ages >= 0) if reach is None else tagged & (ages >= 0) & (ages < reach)
        return np.where(seen, SEEN, HIDDEN)

    def texts(
        self, positions: Sequence[int], sequences: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.intp]]:  # fmt: skip
        """The cells that each row sees, its own among them, in the order of their positions. Raises ValueError where
        these are not 0, 1, ... up to the row's own."""
        found = []
        for position, row in zip(positions, self.mask(positions, sequences) == SEEN, strict=True):
            cells = np.flatnonzero(row)
            cells = cells[np.argsort(self._positions[cells], kind="stable")]
            if not np.array_equal(self._positions[cells], np.arange(position + 1)):
                raise ValueError(f"expected a row at position {position} to see each position up to its own once, came"
                                 f" {len(cells)} cells: an exact stage computes whole texts alone")
            found.append(cells)
        return found

    def apply(self, op: KvOp) -> None:
        """Change tags as `op` says. Raises ValueError for a sequence id that is out of range."""
        match op:
            case KvSeqCp(src, dst, start, stop):
                check_sequences((src, dst), len(self._tags))
                self._add(dst, self._tags[src] & between(self._positions, start, stop))
            case KvSeqRm(sequence, start, stop):
                check_sequences((sequence,), len(self._tags))
                self._drop(sequence, between(self._positions, start, stop))

    def clear(self) -> None:
        self._tags[:] = False
        self._holders[:] = 0
        self._spoilt[:] = False
        self._used = self.window = 0

    def _add(self, sequence: int, cells: NDArray[np.bool_]) -> None:
        self._holders += cells & ~self._tags[sequence]
        self._tags[sequence] |= cells

    def _drop(self, sequence: int, cells: NDArray[np.bool_]) -> None:
        self._holders -= cells & self._tags[sequence]
        self._tags[sequence] &= ~cells
        self._recount()

    def _recount(self) -> None:
        used = np.flatnonzero(self._holders[: self.window])
        self._used = len(used)
        self.window = int(used[-1]) + 1 if len(used) else 0


def is_finite(rows: Hidden) -> bool:
    """Whether no number is NaN or plus infinity: of logits, minus infinity is one that a model may give."""
    return math.isfinite(np.maximum.reduce(rows, axis=None))


def between(positions: NDArray[np.int64], start: int, stop: int) -> NDArray[np.bool_]:
    """Which cells hold a position in [start, stop)."""
    after = positions >= start
    return after if stop == TO_THE_END else after & (positions < stop)


def check_sequences(sequences: Sequence[int], count: int) -> None:
    """Raise ValueError for an id that is not one of `count`."""
    if min(sequences) < 0 or max(sequences) >= count:
        raise ValueError(
            f"expected sequence ids 0..{count - 1}, came {sorted(set(sequences))}: load the stage with more sequences"
        )
