"""Layers [i, j) of a model in a llama.cpp context of their own.

Tokens or hidden states go in by `llama_batch`. Hidden states come out by the evaluation callback: it is asked about
every node of the graph, answers true for the last layer's output and then copies it. A computation is stopped by a flag
that the library reads between nodes. KV cells and their tags are llama.cpp's own.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeinfer.core.messages import TO_THE_END, KvOp, KvSeqCp, KvSeqKeep, KvSeqRm
from pipeinfer.engine.backend import AbortCheck, Batch, CellsFull, Hidden, check_batch
from pipeinfer_llamacpp.cells import Cells, Tags
from pipeinfer_llamacpp.embedding import Embedding
from pipeinfer_llamacpp.hidden import HiddenOutput
from pipeinfer_llamacpp.library import first_error, forget_errors, llama
from pipeinfer_llamacpp.model import LoadedModel
from pipeinfer_llamacpp.rows import Rows, needed_tags
from pipeinfer_llamacpp.watcher import AbortWatcher, new_flag

DECODED, NO_CELLS, ABORTED, BAD_BATCH = 0, 1, 2, -1


class LlamaCppStage:
    """A `pipeinfer.engine.backend.ModelStage` over a model file of its layers.

    The first stage takes tokens, and looks them up in `embedding` where the file has none; all but the last give hidden
    states.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        embedding: Embedding | None,
        vocabulary: int,
        takes_tokens: bool,
        gives_hidden: bool,
        cells: int,
        sequences: int,
        threads: int,
        kv_type: str,
    ) -> None:
        self._model = model
        self._embedding = embedding
        self._takes_tokens = takes_tokens
        self._vocabulary, self._hidden_size = vocabulary, model.hidden_size
        self._cells = Cells(cells, sequences)
        self._rows = Rows(cells, sequences)
        self._hidden = HiddenOutput(f"l_out-{model.layers - 1}") if gives_hidden else None
        flag = new_flag()
        self._context = model.open_context(
            cells, sequences, threads=threads, kv_type=kv_type, flag=flag, hidden=self._hidden
        )
        self._watcher = AbortWatcher(flag)
        self._memory = llama().llama_get_memory(self._context)
        self._decode = llama().llama_decode

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        vocabulary = self._vocabulary if self._takes_tokens else None
        check_batch(batch, hidden, hidden_size=self._hidden_size, vocabulary=vocabulary)
        self._cells.take(batch.positions, batch.sequences)
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
                api.llama_memory_seq_cp(self._memory, src, dst, start, stop)
            case KvSeqRm(sequence, start, stop):
                api.llama_memory_seq_rm(self._memory, sequence, start, stop)
            case KvSeqKeep(sequence):
                api.llama_memory_seq_keep(self._memory, sequence)

    def clear(self) -> None:
        self._cells.clear()
        llama().llama_memory_clear(self._memory, False)

    def close(self) -> None:
        self._watcher.close()
        llama().llama_free(self._context)
        self._model.close()

    def _run(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        if abort():
            return None
        tags = needed_tags(batch.sequences)
        rows = self._rows.fill(batch, tags, self._enter(batch, hidden), all_out=self._hidden is not None)
        status, stopped = self._compute(rows, abort)
        if status == DECODED and not stopped and self._hidden is not None and self._hidden.missed():
            self._take_back(batch.positions, tags)
            status, stopped = self._compute(rows, abort)
        if status == DECODED and not stopped:
            self._tag(batch, tags)
            return self._logits(batch.outputs) if self._hidden is None else self._hidden.result()
        if status not in (NO_CELLS, BAD_BATCH):
            self._take_back(batch.positions, tags)
        self._watcher.raise_error()
        if status not in (DECODED, ABORTED):
            raise failure(status)
        return None

    def _compute(self, rows: Any, abort: AbortCheck) -> tuple[int, bool]:
        """Status of llama_decode, and whether `abort` was true or failed meanwhile."""
        if self._hidden is not None:
            self._hidden.expect(rows.n_tokens, self._hidden_size)
        forget_errors()
        self._watcher.start(abort, rows.n_tokens)
        status = self._decode(self._context, rows)
        return status, self._watcher.stop(computed=status == DECODED)

    def _enter(self, batch: Batch, hidden: Hidden | None) -> Hidden | None:
        """What the rows start from, float32 [R, hidden_size]; None where llama.cpp looks the tokens up itself."""
        return hidden if self._embedding is None else self._embedding.rows(batch.tokens)

    def _logits(self, outputs: int) -> Hidden:
        logits = np.empty((outputs, self._vocabulary), np.float32)
        if outputs:
            target = ctypes.byref(ctypes.c_char.from_buffer(logits.data))
            ctypes.memmove(target, llama().llama_get_logits(self._context), logits.nbytes)
        return logits

    def _tag(self, batch: Batch, tags: Sequence[Tags]) -> None:
        """Add those of the batch's tags that were not needed while it was computed."""
        if tags is batch.sequences:
            return
        for position, wanted, given in zip(batch.positions, batch.sequences, tags, strict=True):
            for sequence in set(wanted) - set(given):
                llama().llama_memory_seq_cp(self._memory, given[0], sequence, position, position + 1)

    def _take_back(self, positions: Sequence[int], tags: Sequence[Tags]) -> None:
        """Remove rows from the cells. When it stops llama.cpp does so itself, but for one tag per row."""
        starts: dict[int, int] = {}
        for position, row in zip(positions, tags, strict=True):
            for sequence in row:
                starts[sequence] = min(position, starts.get(sequence, position))
        for sequence, start in starts.items():
            llama().llama_memory_seq_rm(self._memory, sequence, start, TO_THE_END)


def failure(status: int) -> Exception:
    """The exception for a status of llama_decode that is neither success nor an abort."""
    if status == NO_CELLS:
        return CellsFull("expected free KV cells for the batch, llama.cpp found none: load the stage with more cells")
    if status == BAD_BATCH:
        return ValueError(f"expected rows that go on where their sequences end, llama.cpp says: {first_error()}")
    return RuntimeError(f"llama.cpp could not compute the batch (status {status}): {first_error()}")
