"""A micro-batch as llama.cpp takes it: arrays that live as long as the stage, filled anew for each batch."""

import ctypes
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeinfer.backend import Batch, Hidden
from pipeinfer_llamacpp.library import llama

Tags: TypeAlias = tuple[int, ...]


class Rows:
    """Room for `capacity` rows, each tagged with up to `sequences` sequence ids."""

    def __init__(self, capacity: int, sequences: int) -> None:
        api = llama()
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._tag_counts = np.zeros(capacity, np.int32)
        self._tags = np.zeros((capacity, sequences), np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._tag_rows = self._tags.ctypes.data + self._tags.strides[0] * np.arange(capacity, dtype=np.uintp)
        self._embedded: Hidden | None = None
        self._batch = api.llama_batch()
        self._point("pos", self._positions)
        self._point("n_seq_id", self._tag_counts)
        self._point("seq_id", self._tag_rows)
        self._point("logits", self._outputs)

    def fill(self, batch: Batch, tags: Sequence[Tags], embedded: Hidden | None, *, all_out: bool) -> Any:
        """A `llama_batch` of the rows under these `tags`, good until the next call.

        They start from `embedded` float32 [R, hidden_size], or from their tokens where it is None. `all_out`: every row
        is wanted at the end; llama.cpp drops the others before the last layer's feed-forward network.
        """
        count = len(batch.tokens)
        self._batch.n_tokens = count
        self._enter(batch, embedded)
        self._positions[:count] = batch.positions
        self._tag_counts[:count] = [len(row) for row in tags]
        for number, row in enumerate(tags):
            self._tags[number, : len(row)] = row
        wanted = count if all_out else batch.outputs
        self._outputs[: count - wanted] = 0
        self._outputs[count - wanted : count] = 1
        return self._batch

    def _enter(self, batch: Batch, embedded: Hidden | None) -> None:
        if embedded is None:
            self._tokens[: len(batch.tokens)] = batch.tokens
            self._point("token", self._tokens)
        else:
            self._embedded = np.ascontiguousarray(embedded, np.float32)  # kept alive until the next batch
            self._point("embd", self._embedded)

    def _point(self, field: str, array: NDArray[Any]) -> None:
        kind = dict(type(self._batch)._fields_)[field]
        setattr(self._batch, field, ctypes.cast(array.ctypes.data, kind))


def needed_tags(sequences: Sequence[Tags]) -> Sequence[Tags]:
    """Of each row's tags the first, by which it sees, and those by which later rows see it.

    llama.cpp keeps a row's tags as a set and sees by any of them. Among these all see the same, unless rows of one
    batch are to share a cell and see different ones; the others are added once the row is computed.
    """
    if all(len(row) == 1 for row in sequences):
        return sequences
    seen_by: set[int] = set()
    needed: list[Tags] = []
    for first, *others in reversed(sequences):
        needed.append((first, *(tag for tag in others if tag in seen_by)))
        seen_by.add(first)
    return needed[::-1]
