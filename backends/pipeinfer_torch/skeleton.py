"""A model's modules without weights: what it is made of, and what of it a stage needs.

The whole model is built on torch's meta device, where tensors have a shape and no memory. A stage then fills in its own
part from the checkpoint.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeinfer.engine.backend import BadModel
from pipeinfer.engine.huggingface.checkpoint import Checkpoint
from pipeinfer_torch.config import FUSED, briefly, choose_dtype, read_config
from pipeinfer_torch.fused_modules import FusedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Skeleton:
    """The modules of the model in `folder`, as they will be on `device` in `dtype` ("auto" or a torch dtype's name).

    Raises BadModel for what cannot be split.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: str) -> None:
        self.device = device
        self.config = read_config(folder)
        self.dtype = choose_dtype(self.config, device, dtype)
        self.model = build(self.config, self.dtype, folder)
        self.base = self.model.base_model
        self.layers_name, self.layers = find_layers(self.base, self.config.num_hidden_layers)

    @property
    def architecture(self) -> str:
        return FUSED.get(self.config.model_type) or type(self.model).__name__

    def reach(self, layer: int) -> int | None:
        """How many positions back layer `layer` sees, its own counted; None is all."""
        kinds = getattr(self.config, "layer_types", None)
        slides = kinds is None or kinds[layer] == "sliding_attention"
        return getattr(self.config, "sliding_window", None) if slides else None

    def layer_bytes(self) -> int:
        return count_bytes(self.layers[0])

    def head_bytes(self) -> int:
        """Of the output matrix and what stands before it behind the layers, such as the final norm."""
        return sum(count_bytes(module) for module in [*self._after(), self.model.get_output_embeddings()])

    def embedding_bytes(self) -> int:
        """Of what stands before the layers."""
        return sum(count_bytes(module) for module in self._before())

    def kv_bytes(self) -> int:
        """Of one layer's keys and values for one cell; 0 where the configuration has no usual names for that."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None)
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * heads * head_size * self.dtype.itemsize if heads else 0

    def parts(self, first: int, stop: int) -> Iterator[tuple[str, nn.Module]]:
        """What the stage of layers [first, stop) has, by its name in the checkpoint.

        Modules are defined in the order in which they run: what comes before the layers is the first stage's.
        """
        names = {module: name for name, module in self.model.named_modules()}
        mine = list(self.layers[first:stop])
        if first == 0:
            mine = [*self._before(), *mine]
        if stop == len(self.layers):
            mine += self._after()
        for module in mine:
            yield names[module], module
        if stop == len(self.layers) and not (self._tied and first == 0):
            stored = self.model.get_input_embeddings() if self._tied else self.model.get_output_embeddings()
            yield names[stored], self.model.get_output_embeddings()

    def tensors(self, first: int, stop: int) -> list[str]:
        """Names in the checkpoint of all that the stage of layers [first, stop) reads."""
        return [f"{part}.{name}" for part, module in self.parts(first, stop) for name, _ in module.named_parameters()]

    def stage_bytes(self, first: int, stop: int) -> int:
        return sum(count_bytes(module) for _, module in self.parts(first, stop))

    def fill(self, first: int, stop: int, checkpoint: Checkpoint) -> None:
        """Give the stage's modules their weights. Raises BadModel."""
        for name, module in self.parts(first, stop):
            fill_parameters(module, name, checkpoint, self.device)
        if self._tied and first == 0 and stop == len(self.layers):
            self.model.get_output_embeddings().weight = self.model.get_input_embeddings().weight
        for module in self.base.modules():
            self._fill_buffers(module)

    def untied_by(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint has an output matrix where the configuration says that the embedding is one: then it
        is the one meant, and the configuration says so from here on."""
        names = {module: name for name, module in self.model.named_modules()}
        stored = f"{names[self.model.get_output_embeddings()]}.weight"
        if not self._tied or not checkpoint.holds(stored):
            return False
        self.config.tie_word_embeddings = False
        return True

    def cut(self, first: int, stop: int) -> None:
        """Drop all layers but [first, stop); the configuration speaks of those alone then."""
        self.config.num_hidden_layers = stop - first
        if getattr(self.config, "layer_types", None) is not None:
            self.config.layer_types = self.config.layer_types[first:stop]
        self.layers = self.layers[first:stop]
        setattr(self.base, self.layers_name, self.layers)

    @property
    def _tied(self) -> bool:
        return bool(self.config.tie_word_embeddings)

    def _before(self) -> Iterable[nn.Module]:
        return islice(self.base.children(), self._place)

    def _after(self) -> Iterable[nn.Module]:
        return islice(self.base.children(), self._place + 1, None)

    @property
    def _place(self) -> int:
        return list(self.base.children()).index(self.layers)

    def _fill_buffers(self, module: nn.Module) -> None:
        """Tensors that no checkpoint has, such as rotary frequencies: transformers knows how they start."""
        buffers = dict(module.named_buffers(recurse=False))
        if not any(buffer.is_meta for buffer in buffers.values()):
            return
        for name, buffer in buffers.items():
            module._buffers[name] = torch.empty_like(buffer, device=self.device)
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers leaves it as it is
        self.model._init_weights(module)


def build(config: "PreTrainedConfig", dtype: torch.dtype, folder: Path) -> Any:
    """The model on the meta device, for inference. Raises BadModel."""
    try:
        with torch.device("meta"):
            return build_whole(config, dtype).eval()
    except Exception as error:  # modules raise what they like about sizes that do not fit
        raise BadModel(f"expected a model that transformers can build in {folder}, came {briefly(error)}") from None


def build_whole(config: "PreTrainedConfig", dtype: torch.dtype) -> Any:
    if config.model_type in FUSED:
        return FusedModel(config).to(dtype)
    from pipeinfer_torch import generic_model  # which takes long to import

    return generic_model.build(config, dtype)


def find_layers(base: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    for name, child in base.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return name, child
    raise BadModel(f"expected a list of {count} layers in {type(base).__name__}, came none: the model cannot be split")


def fill_parameters(module: nn.Module, name: str, checkpoint: Checkpoint, device: torch.device) -> None:
    """Replace the parameters of `module`, called `name` in the checkpoint, by what is stored. Raises BadModel."""
    stored = {}
    for parameter_name, parameter in module.named_parameters():
        array = checkpoint.tensor(f"{name}.{parameter_name}", *parameter.shape)
        stored[parameter_name] = torch.from_numpy(array).to(device, parameter.dtype)
    module.load_state_dict(stored, strict=False, assign=True)


def count_bytes(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) * parameter.itemsize for parameter in module.parameters())
