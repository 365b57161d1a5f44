"""Layers [i, j) of a model in a llama.cpp context of their own.

Hidden states go in and out by the callback for looking at a graph's nodes (`hidden.py`). A computation is stopped where
the library asks between nodes (`abort_poll.py`). KV cells and their tags are llama.cpp's own; the context has as many
as the text needs, and is exchanged for one twice as large when it needs more.
"""

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeinfer.core.messages import TO_THE_END, KvOp, KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import AbortCheck, Batch, CellsFull, Hidden, check_batch
from pipeinfer.engine.counted_cells import CountedCells, Tags
from pipeinfer_llamacpp.abort_poll import open_abort
from pipeinfer_llamacpp.embedding import EmbeddingRows
from pipeinfer_llamacpp.hidden import HiddenStates, NodeNames
from pipeinfer_llamacpp.library import first_error, forget_errors, llama
from pipeinfer_llamacpp.model import MICRO_BATCH, LoadedModel
from pipeinfer_llamacpp.rows import Rows, needed_tags

DECODED, NO_CELLS, ABORTED, BAD_BATCH = 0, 1, 2, -1

FIRST_CELLS = 512
"""Cells that a context has at first. llama.cpp fills them all with zeros when it opens one."""


class LlamaCppStage:
    """A `pipeinfer.engine.backend.ModelStage` over a model file of its layers.

    The first stage takes tokens; where its file has no vocabulary it looks them up in `embedding`, and what it found
    enters as hidden states do that come from another stage. `hidden` is where they enter and leave, None for a whole
    model. `fixed_cells`: all cells are there from the start. `owns_model`: it is closed with this stage.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        embedding: EmbeddingRows | None = None,
        hidden: HiddenStates | NodeNames | None = None,
        vocabulary: int,
        takes_tokens: bool,
        gives_hidden: bool,
        cells: int,
        sequences: int,
        threads: int,
        kv_type: str,
        flash: bool,
        fixed_cells: bool = False,
        owns_model: bool = True,
    ) -> None:
        self._owns_model = owns_model
        self._open_another = partial(
            LlamaCppStage, model, embedding=embedding, hidden=hidden, vocabulary=vocabulary, takes_tokens=takes_tokens,
            gives_hidden=gives_hidden, cells=cells, sequences=sequences, threads=threads, kv_type=kv_type, flash=flash,
            fixed_cells=fixed_cells, owns_model=False,
        )  # fmt: skip
        self._model = model
        self._embedding = embedding
        self._hidden = hidden
        self._takes_tokens, self._gives_hidden = takes_tokens, gives_hidden
        self._vocabulary, self._hidden_size = vocabulary, model.hidden_size
        self._most_cells = cells
        self._abort = open_abort()
        self._open_context = partial(model.open_context, sequences=sequences, threads=threads, kv_type=kv_type,
                                     flash=flash, abort=self._abort, hidden=hidden)  # fmt: skip
        now = cells if fixed_cells else min(cells, FIRST_CELLS)
        self._cells = CountedCells(now, sequences)
        self._rows = Rows(min(cells, MICRO_BATCH), sequences)
        self._context = self._open_context(now)
        self._decode = llama().llama_decode

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        vocabulary = self._vocabulary if self._takes_tokens else None
        check_batch(batch, hidden, hidden_size=self._hidden_size, vocabulary=vocabulary)
        self._take_cells(batch)
        result = None
        try:
            result = self._run(batch, hidden, abort)
        finally:
            if result is None:
                self._cells.give_back()
        return result

    def apply(self, op: KvOp) -> None:
        self._cells.apply(op)
        api = llama()
        match op:
            case KvSeqCp(src, dst, start, stop):
                api.llama_memory_seq_cp(self._memory(), src, dst, start, stop)
            case KvSeqRm(sequence, start, stop):
                api.llama_memory_seq_rm(self._memory(), sequence, start, stop)

    def clear(self) -> None:
        self._cells.clear()
        llama().llama_memory_clear(self._memory(), False)

    def beside(self) -> "LlamaCppStage":
        """Another stage over the same model, with a context of its own. Raises BadModel."""
        return self._open_another()

    def close(self) -> None:
        self.release()
        if self._owns_model:
            self._model.close()

    def release(self) -> None:
        """Give back everything but the model."""
        self._abort.close()
        llama().llama_free(self._context)

    def _memory(self) -> Any:
        return llama().llama_get_memory(self._context)

    def _take_cells(self, batch: Batch) -> None:
        """Raises CellsFull when there are too few even in the largest context."""
        while True:
            try:
                return self._cells.take(batch.positions, batch.sequences)
            except CellsFull:
                if self._cells.count == self._most_cells:
                    raise
                self._grow(min(2 * self._cells.count, self._most_cells))

    def _grow(self, cells: int) -> None:
        """Exchange the context for one of `cells` that holds the same."""
        larger = self._open_context(cells)
        copy_state(self._context, larger)
        llama().llama_free(self._context)
        self._context = larger
        self._cells.grow(cells)

    def _run(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        if abort():
            return None
        tags = needed_tags(batch.sequences)
        count = len(batch.tokens)
        entering = self._enter(batch, hidden)
        silent = 0 if self._gives_hidden else count - batch.outputs
        result = np.empty((count - silent, self._hidden_size if self._gives_hidden else self._vocabulary), np.float32)
        for start in range(0, count, MICRO_BATCH):
            rows = range(start, min(start + MICRO_BATCH, count))
            part = None if entering is None else entering[rows.start : rows.stop]
            leaving = result[max(rows.start - silent, 0) : max(rows.stop - silent, 0)]
            filled = self._rows.fill(batch, rows, tags, silent=silent, no_tokens=entering is not None)
            status, stopped = self._compute(filled, part, leaving, abort)
            if status != DECODED or stopped:
                self._fail(status, batch.positions[: rows.stop], tags[: rows.stop], start)
                return None
        self._tag(batch, tags)
        return result

    def _compute(self, rows: Any, entering: Hidden | None, leaving: Hidden, abort: AbortCheck) -> tuple[int, bool]:
        """Fills `leaving`. Status of llama_decode, and whether `abort` was true or failed meanwhile."""
        if self._hidden is not None:
            self._hidden.expect(entering, leaving if self._gives_hidden else None)
        forget_errors()
        self._abort.start(abort, rows.n_tokens)
        status = self._decode(self._context, rows)
        stopped = self._abort.stop(computed=status == DECODED)
        if status == DECODED and not stopped:
            if self._hidden is not None:
                self._hidden.check()
            if not self._gives_hidden and len(leaving):
                ctypes.memmove(leaving.ctypes.data, llama().llama_get_logits(self._context), leaving.nbytes)
        return status, stopped

    def _fail(self, status: int, positions: Sequence[int], tags: Sequence[Tags], start: int) -> None:
        """Take back the rows up to those that were not computed, of which `start` is the first. Raises unless it was
        an abort."""
        computed = start if status in (NO_CELLS, BAD_BATCH) else len(positions)
        self._take_back(positions[:computed], tags[:computed])
        self._abort.raise_error()
        if status not in (DECODED, ABORTED):
            raise failure(status)

    def _enter(self, batch: Batch, hidden: Hidden | None) -> Hidden | None:
        """What the rows start from, float32 [R, hidden_size]; None where llama.cpp looks the tokens up itself."""
        if self._embedding is not None:
            hidden = self._embedding.rows(batch.tokens)
        elif self._takes_tokens:
            return None
        return np.ascontiguousarray(hidden, np.float32)

    def _tag(self, batch: Batch, tags: Sequence[Tags]) -> None:
        """Add those of the batch's tags that were not needed while it was computed."""
        if tags is batch.sequences:
            return
        for position, wanted, given in zip(batch.positions, batch.sequences, tags, strict=True):
            for sequence in set(wanted) - set(given):
                llama().llama_memory_seq_cp(self._memory(), given[0], sequence, position, position + 1)

    def _take_back(self, positions: Sequence[int], tags: Sequence[Tags]) -> None:
        """Remove rows from the cells. When it stops llama.cpp does so itself, but for one tag per row."""
        starts: dict[int, int] = {}
        for position, row in zip(positions, tags, strict=True):
            for sequence in row:
                starts[sequence] = min(position, starts.get(sequence, position))
        for sequence, start in starts.items():
            llama().llama_memory_seq_rm(self._memory(), sequence, start, TO_THE_END)


def failure(status: int) -> Exception:
    """The exception for a status of llama_decode that is neither success nor an abort."""
    if status == NO_CELLS:
        return CellsFull("expected free KV cells for the batch, llama.cpp found none: load the stage with more cells")
    if status == BAD_BATCH:
        return ValueError(f"expected rows that go on where their sequences end, llama.cpp says: {first_error()}")
    return RuntimeError(f"llama.cpp could not compute the batch (status {status}): {first_error()}")


def copy_state(source: Any, target: Any) -> None:
    """Cells and their tags into a context of more cells, in the same order. Raises RuntimeError."""
    api = llama()
    size = api.llama_state_get_size(source)
    state = (ctypes.c_uint8 * size)()
    if api.llama_state_get_data(source, state, size) != size or api.llama_state_set_data(target, state, size) != size:
        raise RuntimeError(f"llama.cpp could not copy {size} bytes of KV cells into a larger context: {first_error()}")
