"""Stages whose rows have the same bits whatever they are computed with, so that no text parts from another one.

Two things change a row's bits: how many rows an engine computes at once, and where in its KV cells lies what the row
sees. So the engine holds one text at a time, from position 0 on in the order of its tokens, and computes it in pieces
of so few rows that each is as if it were alone. Sequences, tags and branches are kept here. When a run goes on with
another branch, the engine's text is cut back to where the two part; what was lost of the first one is computed again if
it is wanted, from the tokens or hidden states that it began with, and has the same bits.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import TO_THE_END, KvOp, KvSeqRm
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden, ModelStage, check_batch
from pipeinfer.engine.kv_cells import Cells, Taken

MOST_WIDE = 8
"""Wider pieces are not looked for: micro-batches have few rows."""

SEGMENTS = ((0, 16), (16, 112), (220, 300), (490, 570))
"""Of which rows of a text it is tried whether they are the same in pieces. Where rounding hides a difference in one
row, as in bfloat16 and quantised weights, those behind it show it. Kernels change at some lengths: llama.cpp pads its
cells to 256, and may share out one row's attention from 512 on."""

ROUNDING = 2.0**-21
"""By how much, relative to it, a sum of float32 differs that was added up in another order."""

Row = int
"""The number of a row that was ever computed; none comes twice."""


class ExactStage:
    """A `ModelStage` over `stage`, which has `cells` cells and at least one sequence; `width` is `invariant_width`.

    `hidden_size` is 0 where the stage begins with tokens. With several requests each takes the engine's text over from
    the other, and is computed again from where they part.
    """

    def __init__(
        self, stage: ModelStage, *, width: int, cells: int, sequences: int, hidden_size: int, gives_logits: bool
    ) -> None:
        self._stage = stage
        self._width = width
        self._gives_logits = gives_logits
        self._hidden_size = hidden_size
        self._cells = Cells(cells, sequences)
        # By cell: which row is in it, and what that began with.
        self._rows = np.zeros(cells, np.int64)
        self._tokens = np.zeros(cells, np.int64)
        self._entering = np.empty((cells, hidden_size), np.float32)
        self._held: list[Row] = []
        """The text that the engine holds."""
        self._next_row: Row = 1

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        check_batch(batch, hidden, hidden_size=self._hidden_size, vocabulary=None if self._hidden_size else 2**31)
        return self._cells.compute(batch, lambda taken: self._run(batch, hidden, taken, abort))

    def apply(self, op: KvOp) -> None:
        self._cells.apply(op)

    def clear(self) -> None:
        self._cells.clear()
        self._stage.clear()
        self._held = []

    def close(self) -> None:
        self._stage.close()

    def _run(self, batch: Batch, hidden: Hidden | None, taken: Taken, abort: AbortCheck) -> Hidden | None:
        count = len(batch.tokens)
        rows = range(self._next_row, self._next_row + count)
        self._next_row += count
        self._rows[taken], self._tokens[taken] = rows, batch.tokens
        if hidden is not None and self._hidden_size:
            self._entering[taken] = hidden
        wanted = rows[count - batch.outputs :] if self._gives_logits else rows
        found: dict[Row, Hidden] = {}
        result = np.empty((0, 0), np.float32)
        for cells in self._texts(batch):
            for piece in self._pieces(cells):
                computed = self._compute(piece, wanted, abort)
                if computed is None:
                    return None
                result = computed[:0]
                here = self._rows[piece].tolist()
                self._held += here
                found |= zip(here[len(here) - len(computed) :], computed, strict=True)
        return np.stack([found[row] for row in wanted]) if wanted else result

    def _texts(self, batch: Batch) -> list[NDArray[np.intp]]:
        """The cells of all texts that end in the batch, those next to each other that have most in common."""
        texts = [(self._rows[cells].tolist(), cells) for cells in self._cells.texts(batch.positions, batch.sequences)]
        texts.sort(key=lambda text: text[0])
        longest = [cells for (rows, cells), (after, _) in pairwise(texts) if after[: len(rows)] != rows]
        return [*longest, texts[-1][1]]

    def _pieces(self, cells: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        """What of a text the engine has still to compute, once it holds nothing else."""
        common = in_common(self._held, self._rows[cells].tolist())
        if common < len(self._held):
            self._stage.apply(KvSeqRm(0, common, TO_THE_END))
            del self._held[common:]
        for start in range(common, len(cells), self._width):
            yield cells[start : start + self._width]

    def _compute(self, cells: NDArray[np.intp], wanted: Sequence[Row], abort: AbortCheck) -> Hidden | None:
        """Rows that go on with what the engine holds: those of the last ones on from the first that is wanted."""
        rows = self._rows[cells].tolist()
        outputs = next((len(rows) - place for place, row in enumerate(rows) if row in wanted), 0)
        batch = chain(self._tokens[cells].tolist(), len(self._held), outputs)
        return self._stage.forward(batch, self._entering[cells] if self._hidden_size else None, abort)


def exact_stage(
    stage: ModelStage, *, cells: int, sequences: int, hidden_size: int, gives_logits: bool
) -> ExactStage:  # fmt: skip
    """`stage`, as wide as it may be."""
    width = invariant_width(stage, cells=cells, hidden_size=hidden_size)
    stage.clear()
    return ExactStage(stage, width=width, cells=cells, sequences=sequences, hidden_size=hidden_size,
                      gives_logits=gives_logits)  # fmt: skip


def invariant_width(stage: ModelStage, *, cells: int, hidden_size: int) -> int:
    """Up to how many rows in one batch have, bit for bit, what each has alone; measured, on a text of its own that goes
    as far as the cells. `hidden_size` is 0 where the stage begins with tokens. The stage then holds nothing of use."""
    probe = _Probe(stage, min(cells, SEGMENTS[-1][1]), hidden_size)
    width = MOST_WIDE
    for start, stop in SEGMENTS:
        stop = min(stop, probe.length)
        if width == 1 or start >= stop:
            break
        probe.fill(start)
        alone = probe.compute(start, stop, 1)
        tried = range(2, width + 1)
        width = next((wide - 1 for wide in tried if not np.array_equal(probe.compute(start, stop, wide), alone)), width)
    return width if width > 1 and probe.sees_rounding(*SEGMENTS[0]) else 1


class _Probe:
    """A made-up text on `stage`, whose rows are computed again and again."""

    def __init__(self, stage: ModelStage, length: int, hidden_size: int) -> None:
        random = np.random.default_rng(0)
        self.length = length
        self._stage = stage
        self._tokens = random.integers(1, 8, length).tolist()
        self._hidden = random.standard_normal((length, hidden_size), np.float32) if hidden_size else None
        self._filled = 0
        stage.clear()

    def fill(self, length: int) -> None:
        if self._filled < length:
            self.compute(self._filled, length, length - self._filled)

    def compute(self, start: int, stop: int, width: int) -> NDArray[np.uint32]:
        """The bits of the rows from `start` on, computed in pieces."""
        self._stage.apply(KvSeqRm(0, start, TO_THE_END))
        found = []
        for first in range(start, stop, width):
            piece = slice(first, min(first + width, stop))
            batch = chain(self._tokens[piece], first, len(self._tokens[piece]))
            found.append(self._stage.forward(batch, None if self._hidden is None else self._hidden[piece], _never))
        self._filled = stop
        return np.concatenate([np.asarray(rows, np.float32) for rows in found]).view(np.uint32)

    def sees_rounding(self, start: int, stop: int) -> bool:
        """Whether hidden states that differ by as little as rounding does make different rows. Where the stage rounds
        all that away, as before a quantised matrix of outputs, that rows are equal says nothing of the next ones."""
        if self._hidden is None:
            return True
        before = self.compute(start, stop, 1)
        self._hidden *= np.float32(1 + ROUNDING)
        return bool((self.compute(start, stop, 1) != before).any(axis=1).mean() > 0.5)


def _never() -> bool:
    return False


def chain(tokens: Sequence[int], start: int, outputs: int) -> Batch:
    """Rows of sequence 0 from position `start` on."""
    return Batch(tokens, range(start, start + len(tokens)), [(0,)] * len(tokens), outputs)


def in_common(one: Sequence[Row], other: Sequence[Row]) -> int:
    """How long the beginning is that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))
