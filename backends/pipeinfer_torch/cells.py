"""KV cells of one stage: their tags, their tensors, and what a batch sees of them."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeinfer.engine.backend import Batch
from pipeinfer.engine.kv_cells import Cells, Taken
from pipeinfer_torch.memory import check_room


class CellsView(NamedTuple):
    """What one forward needs of the cells."""

    taken: slice | Tensor
    """The batch's own cells, in row order."""

    window: int
    """Attention looks at cells [0, window)."""

    masks: dict[int | None, Tensor]
    """To be added to the scores, [rows, window] of 0 and minus infinity: one for each reach that a layer has."""


class KvCells:
    """Cells for one layer per reach, each layer's keys and values in one tensor [2, 1, kv_heads, cells, head_size]."""

    def __init__(self, reaches: Sequence[int | None], cells: int, sequences: int, like: Tensor) -> None:
        self.tags = Cells(cells, sequences)
        self.layers: list[Tensor] = []
        self._reaches = set(reaches)
        self._count = len(reaches)
        self._cells, self._sequences = cells, sequences
        self._like = like

    def allocate(self, kv_heads: int, head_size: int) -> None:
        """Memory for the tensors, zeroed: what lies in a cell that no row sees is multiplied by 0, so be finite."""
        shape = (2, 1, kv_heads, self._cells, head_size)
        self.layers = [self._like.new_zeros(shape) for _ in range(self._count)]

    @torch.inference_mode()
    def beside(self) -> "KvCells":
        """As many more, which hold nothing. Raises BadModel where there is no room."""
        other = copy.copy(self)
        other.tags = Cells(self._cells, self._sequences)
        if self._like.device.type != "cpu":  # there, memory that is never used is never touched
            needed = 2 * sum(layer.nbytes for layer in self.layers)
            check_room(needed, self._like.device, f"{self._cells} KV cells more and as much for computing")
        other.layers = [torch.zeros_like(layer) for layer in self.layers]
        return other

    @torch.inference_mode()
    def wipe(self, taken: Taken) -> None:
        """Set these cells to 0."""
        for layer in self.layers:
            layer[:, :, :, self._numbers(taken)] = 0

    def view(self, batch: Batch, taken: Taken) -> CellsView:
        masks = {
            reach: torch.from_numpy(self.tags.mask(batch.positions, batch.sequences, reach)).to(self._like)
            for reach in self._reaches
        }
        return CellsView(self._numbers(taken), self.tags.window, masks)

    def _numbers(self, taken: Taken) -> slice | Tensor:
        return taken if isinstance(taken, slice) else torch.from_numpy(taken).to(self._like.device)
