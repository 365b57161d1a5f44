"""One stage: its cells, and the layers that run over them."""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeinfer.core.messages import KvOp
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden, check_batch, check_layers
from pipeinfer.engine.kv_cells import Taken
from pipeinfer_torch.cells import KvCells
from pipeinfer_torch.config import FUSED
from pipeinfer_torch.fused_layers import FusedLayers
from pipeinfer_torch.memory import check_room
from pipeinfer_torch.skeleton import Skeleton
from pipeinfer_torch.source import find_model, find_weights


def load_stage(
    model: str, layers: tuple[int, int], device: torch.device, dtype: str, *, cells: int, sequences: int
) -> "TorchStage":
    """Raises BadModel."""
    skeleton = Skeleton(find_model(model), device, dtype)
    check_layers(layers, len(skeleton.layers), model)
    first, stop = layers
    check_room(skeleton.stage_bytes(first, stop), device, f"layers [{first}, {stop}) of {model}")
    with torch.inference_mode():
        checkpoint = find_weights(model, skeleton.tensors(first, stop))
        if skeleton.untied_by(checkpoint):
            checkpoint = find_weights(model, skeleton.tensors(first, stop))
        skeleton.fill(first, stop, checkpoint)
        return TorchStage(skeleton, first, stop, cells=cells, sequences=sequences)


class TorchStage:
    """Layers [first, stop) with their KV cells; `pipeinfer.engine.backend.ModelStage` says what is promised."""

    def __init__(self, skeleton: Skeleton, first: int, stop: int, *, cells: int, sequences: int) -> None:
        config = skeleton.config
        self._vocabulary = config.vocab_size if first == 0 else None
        self._hidden_size = config.hidden_size
        self._like = torch.empty(0, dtype=skeleton.dtype, device=skeleton.device)
        reaches = [skeleton.reach(layer) for layer in range(first, stop)]
        self._cells = KvCells(reaches, cells, sequences, self._like)
        self._layers = layers_of(config.model_type)(skeleton, first, stop, self._cells)

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> Hidden | None:
        check_batch(batch, hidden, hidden_size=self._hidden_size, vocabulary=self._vocabulary)
        return self._cells.tags.compute_apart(batch, hidden, partial(self._run, abort), self._cells.wipe)

    def beside(self) -> "TorchStage":
        """Another stage with the same layers and cells of its own. Raises BadModel."""
        other = copy.copy(self)
        other._cells = self._cells.beside()
        return other

    def apply(self, op: KvOp) -> None:
        self._cells.tags.apply(op)

    def clear(self) -> None:
        self._cells.tags.clear()

    def close(self) -> None:
        del self._layers, self._cells

    @torch.inference_mode()
    def _run(self, abort: AbortCheck, batch: Batch, hidden: Hidden | None, taken: Taken) -> Hidden | None:
        positions = torch.tensor(batch.positions, device=self._like.device)
        view = self._cells.view(batch, taken)
        self._layers.use(self._cells)
        result = self._layers.run(self._enter(batch, hidden), positions, view, batch.outputs, abort)
        return None if result is None else result.to("cpu", torch.float32).numpy()

    def _enter(self, batch: Batch, hidden: Hidden | None) -> Tensor:
        """Token ids [rows], or the arriving hidden states as the stage's own [rows, hidden_size]."""
        if self._vocabulary is not None:
            return torch.tensor(batch.tokens, device=self._like.device)
        return torch.from_numpy(np.array(hidden)).to(self._like)


def layers_of(kind: str) -> Any:
    """The class of a stage's layers, for a model of this type."""
    if kind in FUSED:
        return FusedLayers
    from pipeinfer_torch.generic import GenericLayers  # transformers' modelling code, which takes long to import

    return GenericLayers
