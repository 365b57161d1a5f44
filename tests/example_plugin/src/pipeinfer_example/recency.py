"""A backend: a made-up language model whose layers mix in what stands before, the nearer the more.

It has no weights to load, yet everything a real one has: stages, KV cells with sequence tags, cancellation.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp
from pipeinfer.engine.backend import AbortCheck, BadModel, Batch, Hidden, ModelInfo, Token
from pipeinfer.engine.kv_cells import Cells

LAYERS, HIDDEN, VOCABULARY = 4, 48, 260


class RecencyBackend:
    """One model, `recency`; the draft may be `recency:shallow`, which has its first two layers."""

    def info(self, model: str) -> ModelInfo:
        return ModelInfo(
            architecture="recency", layers=_depth(model), hidden_size=HIDDEN, vocabulary=VOCABULARY,
            vocabulary_digest="bytes", context=4096, layer_bytes=4 * HIDDEN * HIDDEN,
            head_bytes=4 * HIDDEN * VOCABULARY,
        )  # fmt: skip

    def load(self, model: str, layers: tuple[int, int], *, cells: int, sequences: int) -> "RecencyStage":
        depth = _depth(model)
        if not 0 <= layers[0] < layers[1] <= depth:
            raise BadModel(f"expected layers [i, j) with 0 <= i < j <= {depth}, came {layers}")
        return RecencyStage(layers, depth, Cells(cells, sequences), cells)

    def tokenizer(self, model: str) -> "ByteTokenizer":
        _depth(model)
        return ByteTokenizer()


class RecencyStage:
    """Layers [i, j): hidden = tanh(hidden W + weighted mean of the hidden states that the row may see)."""

    def __init__(self, layers: tuple[int, int], depth: int, cells: Cells, count: int) -> None:
        rng = np.random.default_rng(20)
        embedding = rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
        weights = rng.standard_normal((LAYERS, HIDDEN, HIDDEN)).astype(np.float32) / np.float32(HIDDEN**0.5)
        self._embedding = embedding if layers[0] == 0 else None
        self._head = embedding.T.copy() if layers[1] == depth else None
        self._weights = weights[layers[0] : layers[1]]
        self._cells = cells
        self._seen = np.zeros((len(self._weights), count, HIDDEN), np.float32)
        self._positions = np.zeros(count, np.float32)

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        taken = self._cells.take(batch.positions, batch.sequences)
        self._positions[taken] = batch.positions
        nearness = self._nearness(batch)
        if self._embedding is not None:
            hidden = self._embedding[list(batch.tokens)]
        assert hidden is not None
        for weights, seen in zip(self._weights, self._seen, strict=True):
            if abort():
                self._cells.free(taken)
                return None
            seen[taken] = hidden
            # Row by row, so that a row's bits do not depend on what else is in the batch.
            rows = [row @ weights + near @ seen[: len(near)] for row, near in zip(hidden, nearness, strict=True)]
            hidden = np.tanh(np.stack(rows))
        if self._head is None:
            return hidden
        logits = np.empty((batch.outputs, VOCABULARY), np.float32)
        for row, out in zip(hidden[len(hidden) - batch.outputs :], logits, strict=True):
            np.matmul(row, self._head, out=out)
        return logits

    def apply(self, op: KvOp) -> None:
        self._cells.apply(op)

    def clear(self) -> None:
        self._cells.clear()

    def close(self) -> None:
        """Nothing is held."""

    def _nearness(self, batch: Batch) -> NDArray[np.float32]:
        """How much each row takes of each cell: float32 [rows, window], 0 for what it may not see, summing to 1."""
        mask = self._cells.mask(batch.positions, batch.sequences)
        distance = self._positions[: mask.shape[1]] - np.asarray(batch.positions, np.float32)[:, None]
        weights = np.exp(np.float32(0.5) * distance + mask)
        return weights / weights.sum(axis=1, keepdims=True)


class ByteTokenizer:
    """One token per byte."""

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def tokens(self) -> Mapping[int, Token]:
        return {byte: Token(f"<0x{byte:02X}>", special=False) for byte in range(256)}

    def chat_template(self) -> None:
        """It was never made for conversations."""


def _depth(model: str) -> int:
    depths = {"recency": LAYERS, "recency:shallow": 2}
    if model not in depths:
        raise BadModel(f"expected one of {', '.join(depths)}, came {model!r}")
    return depths[model]
