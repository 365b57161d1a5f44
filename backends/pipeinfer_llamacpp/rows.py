"""A micro-batch as llama.cpp takes it: arrays that live as long as the stage, filled anew for each batch."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer.engine.backend import Batch
from pipeinfer.engine.counted_cells import Tags
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

    def fill(self, batch: Batch, rows: range, tags: Sequence[Tags], *, silent: int, no_tokens: bool) -> Any:
        """A `llama_batch` of the batch's `rows` under these `tags`, good until the next call.

        Rows before `silent` are not wanted at the end: llama.cpp drops them before the last feed-forward network.
        `no_tokens`: what the rows start from enters by another way, and the model has no vocabulary.
        """
        self._batch.n_tokens = len(rows)
        for place, row in enumerate(rows):
            self._tokens[place] = 0 if no_tokens else batch.tokens[row]
            self._positions[place] = batch.positions[row]
            self._outputs[place] = row >= silent
            self._tag_counts[place] = len(tags[row])
            for number, tag in enumerate(tags[row]):
                self._tags[place, number] = tag
        return self._batch

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
