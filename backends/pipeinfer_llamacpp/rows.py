"""A micro-batch as llama.cpp takes it: arrays that live as long as the stage, filled anew for each batch."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer.engine.backend import Batch, Hidden
from pipeinfer_llamacpp.cells import Tags
from pipeinfer_llamacpp.library import llama


class Rows:
    """Room for `capacity` rows, each tagged with up to `sequences` sequence ids.

    The arrays are filled through memoryviews: NumPy takes longer to assign a few numbers than Python.
    """

    def __init__(self, capacity: int, sequences: int) -> None:
        self._batch = llama().llama_batch()
        self._arrays: list[NDArray[Any]] = []
        self._tokens = self._array("token", np.zeros(capacity, np.int32))
        self._positions = self._array("pos", np.zeros(capacity, np.int32))
        self._tag_counts = self._array("n_seq_id", np.zeros(capacity, np.int32))
        self._outputs = self._array("logits", np.zeros(capacity, np.int8))
        tags = np.zeros((capacity, sequences), np.int32)
        self._tags = tags.data
        self._array("seq_id", tags.ctypes.data + tags.strides[0] * np.arange(capacity, dtype=np.uintp))

    def fill(self, batch: Batch, tags: Sequence[Tags], embedded: Hidden | None, *, all_out: bool) -> Any:
        """A `llama_batch` of the rows under these `tags`, good until the next call.

        They start from `embedded` float32 [R, hidden_size], or from their tokens where it is None. `all_out`: every row
        is wanted at the end; llama.cpp drops the others before the last layer's feed-forward network.
        """
        count = self._batch.n_tokens = len(batch.tokens)
        silent = 0 if all_out else count - batch.outputs
        if embedded is not None:
            self._embed(embedded)
        for row in range(count):
            self._tokens[row] = batch.tokens[row]
            self._positions[row] = batch.positions[row]
            self._outputs[row] = row >= silent
            self._tag_counts[row] = len(tags[row])
            for number, tag in enumerate(tags[row]):
                self._tags[row, number] = tag
        return self._batch

    def _embed(self, embedded: Hidden) -> None:
        self._embedded = np.ascontiguousarray(embedded, np.float32)  # kept alive until the next batch
        self._point("embd", self._embedded)
        self._batch.token = None

    def _array(self, field: str, array: NDArray[Any]) -> memoryview:
        self._arrays.append(array)
        self._point(field, array)
        return array.data

    def _point(self, field: str, array: NDArray[Any]) -> None:
        setattr(self._batch, field, ctypes.cast(array.ctypes.data, type(getattr(self._batch, field))))


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
