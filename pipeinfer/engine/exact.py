"""Stages whose rows have the same bits whatever they are computed with, so that no text parts from another one.

Two things change a row's bits: how many rows an engine computes at once, and where in its KV cells lies what the row
sees. So an engine holds one text at a time, from position 0 on in the order of its tokens, and computes it in pieces
of so few rows that each is as if it were alone. Sequences, tags and branches are kept here, and each request has an
engine with its text (`pipeinfer.engine.exact_texts`). When a run goes on with another branch, the text is cut back to
where the two part; what was lost of the first one is computed again if it is wanted, from the tokens or hidden states
that it began with, and has the same bits.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden, ModelStage, chain, check_batch
from pipeinfer.engine.exact_texts import EngineText, EngineTexts, Row
from pipeinfer.engine.invariant_width import invariant_width
from pipeinfer.engine.kv_cells import Cells, Taken


class ExactStage:
    """A `ModelStage` over `stage`, which has `cells` cells and at least one sequence; `width` is `invariant_width`.

    `hidden_size` is 0 where the stage begins with tokens.
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
        self._texts = EngineTexts(stage, cells)
        self._next_row: Row = 1

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        check_batch(batch, hidden, hidden_size=self._hidden_size, vocabulary=None if self._hidden_size else 2**31)
        return self._cells.compute(batch, lambda taken: self._run(batch, hidden, taken, abort))

    def apply(self, op: KvOp) -> None:
        self._cells.apply(op)

    def end(self, requests: Iterable[int]) -> None:
        """These requests are over: a new one that begins like one of them may go on with its text."""
        self._texts.leave(requests)

    def clear(self) -> None:
        self._cells.clear()
        self._texts.clear()

    def close(self) -> None:
        self._texts.clear()
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
        for request, cells in self._ends(batch):
            text = self._texts.of(request, self._rows[cells].tolist())
            for piece in self._pieces(text, cells):
                computed = self._compute(text, piece, wanted, abort)
                if computed is None:
                    return None
                result = computed[:0]
                here = self._rows[piece].tolist()
                text.rows += here
                found |= zip(here[len(here) - len(computed) :], computed, strict=True)
        return np.stack([found[row] for row in wanted]) if wanted else result

    def _ends(self, batch: Batch) -> list[tuple[int, NDArray[np.intp]]]:
        """The cells of all texts that end in the batch, each with its request, those next to each other that have most
        in common."""
        requests = batch.requests if len(batch.requests) > 1 else [batch.requests[0]] * len(batch.tokens)
        seen = self._cells.texts(batch.positions, batch.sequences)
        ends = [(request, self._rows[cells].tolist(), cells) for request, cells in zip(requests, seen, strict=True)]
        ends.sort(key=lambda end: end[:2])
        longest = [(request, cells) for (request, rows, cells), (_, after, _) in pairwise(ends)
                   if after[: len(rows)] != rows]  # fmt: skip
        return [*longest, (ends[-1][0], ends[-1][2])]

    def _pieces(self, text: EngineText, cells: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        """What the engine has still to compute, once it holds nothing else than the beginning of these cells' rows."""
        common = text.cut(self._rows[cells].tolist())
        for start in range(common, len(cells), self._width):
            yield cells[start : start + self._width]

    def _compute(
        self, text: EngineText, cells: NDArray[np.intp], wanted: Sequence[Row], abort: AbortCheck
    ) -> Hidden | None:
        """Rows that go on with what the engine holds: those of the last ones on from the first that is wanted."""
        rows = self._rows[cells].tolist()
        outputs = next((len(rows) - place for place, row in enumerate(rows) if row in wanted), 0)
        batch = chain(self._tokens[cells].tolist(), len(text.rows), outputs)
        return text.stage.forward(batch, self._entering[cells] if self._hidden_size else None, abort)


def exact_stage(
    stage: ModelStage, *, cells: int, sequences: int, hidden_size: int, gives_logits: bool
) -> ExactStage:  # fmt: skip
    """`stage`, as wide as it may be."""
    width = invariant_width(stage, cells=cells, hidden_size=hidden_size)
    stage.clear()
    return ExactStage(stage, width=width, cells=cells, sequences=sequences, hidden_size=hidden_size,
                      gives_logits=gives_logits)  # fmt: skip
