"""Layers [i, j) of a Llama model in float32 NumPy: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden, check_batch
from pipeinfer.engine.kv_cells import Cells, Taken
from pipeinfer_numpy.config import LlamaConfig
from pipeinfer_numpy.rope import inverse_frequencies, rotations
from pipeinfer_numpy.weights import LayerWeights, OutputHead, StageWeights

GEMM_ROWS = 8
"""From this many rows on one matrix product beats a vector-matrix product per row (measured with OpenBLAS)."""


class LlamaStage:
    """One stage with its KV cells; `pipeinfer.engine.backend.ModelStage` says what is promised."""

    def __init__(self, config: LlamaConfig, weights: StageWeights, *, cells: int, sequences: int) -> None:
        self._weights = weights
        self.beside = partial(LlamaStage, config, weights, cells=cells, sequences=sequences)
        """Another stage with the same weights and cells of its own."""
        self._hidden_size = config.hidden_size
        self._vocabulary = None if weights.embedding is None else config.vocab_size
        self._heads = config.num_attention_heads
        self._kv_heads = config.kv_heads
        self._head_size = config.head_size
        self._eps = config.rms_norm_eps
        self._frequencies = inverse_frequencies(config)
        self._cells = Cells(cells, sequences)
        # Each lies as its product in `attend` wants it. Memory of cells that are never used is never touched.
        layers, kv_heads, head_size = len(weights.layers), self._kv_heads, self._head_size
        self._keys = np.zeros((layers, kv_heads, head_size, cells), np.float32)
        self._values = np.zeros((layers, kv_heads, cells, head_size), np.float32)

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        check_batch(batch, hidden, hidden_size=self._hidden_size, vocabulary=self._vocabulary)
        return self._cells.compute_apart(batch, hidden, partial(self._run, abort), self._wipe)

    def apply(self, op: KvOp) -> None:
        self._cells.apply(op)

    def clear(self) -> None:
        self._cells.clear()

    def close(self) -> None:
        del self._weights, self._keys, self._values, self.beside

    def _wipe(self, taken: Taken) -> None:
        self._keys[..., taken] = 0
        self._values[:, :, taken] = 0

    def _run(self, abort: AbortCheck, batch: Batch, hidden: Hidden | None, taken: Taken) -> Hidden | None:
        x = self._enter(batch, hidden)
        turn = rotations(self._frequencies, batch.positions)
        mask = self._cells.mask(batch.positions, batch.sequences)
        window = self._cells.window
        for layer, keys, values in zip(self._weights.layers, self._keys, self._values, strict=True):
            if abort():
                return None
            queries, keys[..., taken], values[:, taken] = self._project(layer, rms_norm(x, self._eps), turn)
            x += linear(attend(queries, keys[..., :window], values[:, :window], mask), layer.attention_out)
            x += linear(swiglu(linear(rms_norm(x, self._eps), layer.gate_up)), layer.down)
        if self._weights.head is None:
            return x
        return None if abort() else self._logits(self._weights.head, x[len(x) - batch.outputs :])

    def _enter(self, batch: Batch, hidden: Hidden | None) -> Hidden:
        """The rows as this stage's own array [rows, hidden_size], which the layers then add to in place."""
        if self._weights.embedding is None:
            return np.array(hidden, np.float32)
        return self._weights.embedding[list(batch.tokens)]

    def _project(self, layer: LayerWeights, x: Hidden, turn: NDArray[np.complex64]) -> tuple[Hidden, Hidden, Hidden]:
        """What the rows ask for and what they put into their cells.

        Queries are [kv_heads, rows, group, head_size], a group being the query heads that share a key head; keys are
        [kv_heads, head_size, rows] and values [kv_heads, rows, head_size].
        """
        rows, heads, kv_heads, head_size = len(x), self._heads, self._kv_heads, self._head_size
        qkv = linear(x, layer.qkv).reshape(rows, heads + 2 * kv_heads, head_size)
        queries_and_keys = qkv[:, : heads + kv_heads].view(np.complex64)
        queries_and_keys *= turn[:, None]
        queries, keys, values = qkv[:, :heads], qkv[:, heads:-kv_heads], qkv[:, -kv_heads:]
        grouped = queries.reshape(rows, kv_heads, -1, head_size)
        return grouped.swapaxes(0, 1), keys.transpose(1, 2, 0), values.swapaxes(0, 1)

    def _logits(self, head: OutputHead, x: Hidden) -> Hidden:
        return linear(rms_norm(x, self._eps) * head.norm, head.output.T)


def linear(x: Hidden, weight: Hidden) -> Hidden:
    """[rows, inputs] times [inputs, outputs]."""
    product: Hidden = x @ weight if len(x) >= GEMM_ROWS else np.matmul(x[:, None], weight)[:, 0]
    return product


def rms_norm(x: Hidden, eps: float) -> Hidden:
    """Each row over its root mean square. The norm's own weights are in the matrix that follows."""
    root: Hidden = np.add.reduce(x * x, axis=1, keepdims=True)
    root /= x.shape[1]
    root += eps
    np.sqrt(root, out=root)
    return x / root


def attend(queries: Hidden, keys: Hidden, values: Hidden, mask: Hidden) -> Hidden:
    """What each row takes from the cells that it sees, [rows, heads * head_size].

    Shapes are those of `LlamaStage._project` with all cells of the window for keys and values; mask [rows, window].
    """
    kv_heads, rows, group, head_size = queries.shape
    # Query heads that share keys become further rows of one product per key head.
    scores = queries.reshape(kv_heads, rows * group, head_size) @ keys
    weights = softmax_numerators(scores.reshape(kv_heads, rows, group, -1), mask).reshape(scores.shape)
    mixed = weights @ values
    mixed /= np.add.reduce(weights, axis=-1, keepdims=True)
    return mixed.reshape(queries.shape).swapaxes(0, 1).reshape(rows, -1)


def softmax_numerators(scores: Hidden, mask: Hidden) -> Hidden:
    """exp(scores + mask) up to a factor per row, in place.

    Scores are [kv_heads, rows, group, cells], the mask is [rows, cells].
    """
    scores += mask[:, None]
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    return np.exp(scores, out=scores)


def swiglu(gate_up: Hidden) -> Hidden:
    """silu(g) * u from [rows, g/2 and u]. With h = g/2, silu(g) is h * (1 + tanh(h)), which cannot overflow."""
    ffn = gate_up.shape[1] // 2
    half_gate, up = gate_up[:, :ffn], gate_up[:, ffn:]
    result = np.tanh(half_gate)
    result += 1
    result *= half_gate
    result *= up
    return result
