"""The layers of other models, run by transformers' own code.

The model's own forward is entered at its beginning and left in the middle: a hook before the stage's first layer puts
the arriving hidden states in place of what stands there, a hook behind its last takes them out. Whatever else a model
does before and after its layers (scaled embeddings, capped logits) so is done once, by the model itself.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from pipeinfer.engine.backend import AbortCheck, BadModel
from pipeinfer_torch.cells import CellsView, KvCells
from pipeinfer_torch.config import briefly
from pipeinfer_torch.linear import take
from pipeinfer_torch.skeleton import Skeleton


class ForwardEnded(Exception):  # noqa: N818 - reads as what happened
    """The model's forward ended early: with the hidden states behind the stage's last layer, or None when aborted."""

    def __init__(self, hidden: Tensor | None) -> None:
        self.hidden = hidden


class GenericLayers:
    """Layers [first, stop) with the embedding before or the head behind, as far as the stage has them."""

    def __init__(self, skeleton: Skeleton, first: int, stop: int, cells: KvCells) -> None:
        self._model = skeleton.model
        self._is_first = first == 0
        self._reaches = [skeleton.reach(layer) for layer in range(first, stop)]
        self._cache = CellCache(cells, first)
        self._cache_argument = name_of_cache(skeleton.model)
        self._entering: Tensor
        self._abort: AbortCheck
        is_last = stop == len(skeleton.layers)
        skeleton.cut(first, stop)
        quicken(skeleton.layers)
        for place, layer in enumerate(skeleton.layers):
            layer.register_forward_pre_hook(self._before(place), with_kwargs=True)
        if is_last:
            output = skeleton.model.get_output_embeddings()
            output.register_forward_pre_hook(self._before_output)
            quicken(output)
        else:
            skeleton.layers[-1].register_forward_hook(leave)
        try:
            self._try_one_row(skeleton)
        except Exception as error:  # code of another version of transformers may fail anywhere
            raise BadModel(f"expected layers that run apart from the rest of {type(self._model).__name__}, came"
                           f" {briefly(error)}: install another version of transformers") from None

    def use(self, cells: KvCells) -> None:
        """What comes next is of a text in these."""
        self._cache.cells = cells

    def run(
        self, entering: Tensor, positions: Tensor, view: CellsView, outputs: int, abort: AbortCheck
    ) -> Tensor | None:
        """From token ids [rows] or hidden states [rows, hidden_size] to hidden states or logits [outputs, vocabulary];
        None when aborted."""
        self._cache.view, self._entering, self._abort = view, entering[None], abort
        rows = len(entering)
        came: dict[str, Any] = {"input_ids": self._entering} if self._is_first else {"inputs_embeds": self._entering}
        came[self._cache_argument] = self._cache
        try:
            result = self._model(
                **came,
                position_ids=positions[None],
                attention_mask=next(iter(view.masks.values()))[None, None],
                use_cache=True,
                logits_to_keep=torch.arange(rows - outputs, rows, device=entering.device),
            )
        except ForwardEnded as ended:
            return ended.hidden
        logits: Tensor = result.logits[0]
        return logits

    def _before(self, place: int) -> Any:
        """The hook before layer `place` of the stage."""

        def enter(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if self._abort():
                raise ForwardEnded(None)
            if place == 0 and not self._is_first:
                args = (self._entering, *args[1:])
            return args, kwargs | {"attention_mask": self._cache.view.masks[self._reaches[place]][None, None]}

        return enter

    def _before_output(self, output: nn.Module, args: tuple[Any, ...]) -> None:
        if self._abort():
            raise ForwardEnded(None)

    def _try_one_row(self, skeleton: Skeleton) -> None:
        """Run one row. That shows the shape of the cells, and whether each layer uses them as a stage needs it."""
        device = skeleton.device
        entering = torch.zeros((1,), dtype=torch.long, device=device) if self._is_first else torch.zeros(
            (1, skeleton.config.hidden_size), dtype=skeleton.dtype, device=device
        )
        mask = torch.zeros((1, 1), dtype=skeleton.dtype, device=device)
        view = CellsView(slice(0, 1), 1, dict.fromkeys(self._reaches, mask))
        self.run(entering, torch.zeros((1,), dtype=torch.long, device=device), view, 1, lambda: False)
        if self._cache.stored != set(range(len(self._reaches))):
            raise ValueError("its layers do not each keep one pair of keys and values")


class CellCache(Cache):
    """The cells of the stage, as transformers' attention modules know a cache."""

    def __init__(self, cells: KvCells, first: int) -> None:
        super().__init__(layers=[])
        self.view: CellsView
        self.stored: set[int] = set()
        """Layers of the stage that have stored anything so far."""
        self.cells = cells
        self._first = first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the rows' keys and values, each [1, kv_heads, rows, head_size]; gives those of the window."""
        heads, head_size = key_states.shape[1], key_states.shape[3]
        if not self.cells.layers:
            self.cells.allocate(heads, head_size)
        place = layer_idx - self._first
        self.stored.add(place)
        cells = self.cells.layers[place]
        cells[0, :, :, self.view.taken] = key_states
        cells[1, :, :, self.view.taken] = value_states
        keys, values = cells[:, :, :, : self.view.window].unbind()
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def name_of_cache(model: nn.Module) -> str:
    """What the model's forward calls its cache: `past_key_values` until transformers 5.23, `cache` from 5.24 on."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def quicken(module: nn.Module) -> None:
    """Let the matrix products in `module` be those of `linear.py`."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.forward = take(part)  # type: ignore[assignment]


def leave(_layer: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
    """The hook behind the stage's last layer."""
    raise ForwardEnded((output if isinstance(output, Tensor) else output[0])[0])
