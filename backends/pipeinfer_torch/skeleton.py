"""A model's modules without weights: what it is made of, what of it a stage needs, and whether it can be split at all.

transformers builds the whole model on torch's meta device, where tensors have a shape and no memory. A stage then
fills in its own part from the checkpoint and drops the rest.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from pipeinfer.backend import BadModel
from pipeinfer.hf.checkpoint import Checkpoint
from pipeinfer_torch.attention import NAME

LEAN = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers `lean.py` computes: RMSNorm, rotary positions, grouped queries, SwiGLU."""

GENERIC = ("cohere", "falcon", "gemma", "gemma2", "gemma3_text", "granite", "olmo2", "phi3", "stablelm",
           "starcoder2")
"""Model types whose layers `generic.py` runs as transformers has them. The tests hold each against the whole model."""

class Skeleton:
    """The modules of the model in `folder`, as they will be on `device` in `dtype` ("auto" or a torch dtype's name).

    Raises BadModel for what cannot be split.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: str) -> None:
        self.folder = folder
        self.device = device
        self.config = read_config(folder)
        check(self.config, folder)
        self.dtype = choose_dtype(self.config, device, dtype)
        self.model = build(self.config, self.dtype, folder)
        self.base = self.model.base_model
        self.layers_name, self.layers = find_layers(self.base, self.config.num_hidden_layers)

    @property
    def architecture(self) -> str:
        return type(self.model).__name__

    @property
    def eos(self) -> tuple[int, ...]:
        ids = self.config.eos_token_id
        return tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)

    def reach(self, layer: int) -> int | None:
        """How many positions back layer `layer` sees, its own counted; None is all."""
        kinds = getattr(self.config, "layer_types", None)
        slides = kinds is None or kinds[layer] == "sliding_attention"
        return getattr(self.config, "sliding_window", None) if slides else None

    def layer_bytes(self) -> int:
        return count_bytes(self.layers[0])

    def head_bytes(self) -> int:
        return sum(count_bytes(module) for _, module in [*self.after(), ("", self.model.get_output_embeddings())])

    def before(self) -> list[tuple[str, nn.Module]]:
        """What stands before the layers, such as the embedding. Modules are defined in the order in which they run."""
        return self._children(slice(0, self._place))

    def after(self) -> list[tuple[str, nn.Module]]:
        """What stands between the layers and the output matrix, such as the final norm."""
        return self._children(slice(self._place + 1, None))

    @property
    def _place(self) -> int:
        return [name for name, _ in self.base.named_children()].index(self.layers_name)

    def _children(self, part: slice) -> list[tuple[str, nn.Module]]:
        prefix = self.model.base_model_prefix
        return [(f"{prefix}.{name}", child) for name, child in [*self.base.named_children()][part]]

    def fill(self, first: int, stop: int, checkpoint: Checkpoint) -> None:
        """Give layers [first, stop), and what else their stage needs, their weights. Raises BadModel."""
        for name, module in self._parts(first, stop):
            fill_parameters(module, name, checkpoint, self.device)
        if stop == len(self.layers):
            self._fill_output(checkpoint)
        for module in self.base.modules():
            self._fill_buffers(module)

    def _parts(self, first: int, stop: int) -> Iterator[tuple[str, nn.Module]]:
        if first == 0:
            yield from self.before()
        for layer in range(first, stop):
            yield f"{self.model.base_model_prefix}.{self.layers_name}.{layer}", self.layers[layer]
        if stop == len(self.layers):
            yield from self.after()

    def _fill_output(self, checkpoint: Checkpoint) -> None:
        names = {module: name for name, module in self.model.named_modules()}
        output = self.model.get_output_embeddings()
        stored = self.model.get_input_embeddings() if self.config.tie_word_embeddings else output
        if stored is not output and not stored.weight.is_meta:
            output.weight = stored.weight
        else:
            fill_parameters(output, names[stored], checkpoint, self.device)

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

    def cut(self, first: int, stop: int) -> None:
        """Drop all layers but [first, stop); the configuration speaks of those alone then."""
        self.config.num_hidden_layers = stop - first
        if getattr(self.config, "layer_types", None) is not None:
            self.config.layer_types = self.config.layer_types[first:stop]
        self.layers = self.layers[first:stop]
        setattr(self.base, self.layers_name, self.layers)


def read_config(folder: Path) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each configuration class checks its fields in its own way
        raise BadModel(f"expected the configuration of a model that transformers has in {folder / 'config.json'}, came"
                       f" {one_line(error)}") from None
    return cast(PreTrainedConfig, config.get_text_config())


def check(config: PreTrainedConfig, folder: Path) -> None:
    """Raises BadModel for a model that would be computed wrongly."""
    if config.model_type not in LEAN + GENERIC:
        raise BadModel(f"expected a model type of {', '.join(LEAN + GENERIC)} in {folder}, came {config.model_type!r}:"
                       " its layers cannot be split; choose another model or another backend")
    if getattr(config, "alibi", False):
        raise BadModel(f"expected rotary positions in {folder}, came ALiBi: choose another model or another backend")
    changing = rope_kinds(config) & {"dynamic", "longrope"}
    if changing:
        raise BadModel(f"expected rotary frequencies that stay in {folder}, came {changing.pop()!r}, whose frequencies"
                       " change with the text's length while earlier cells keep theirs: choose another model")


def rope_kinds(config: PreTrainedConfig) -> set[Any]:
    """Every rope type of the model: one, or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    tables = [parameters, *(table for table in parameters.values() if isinstance(table, dict))]
    return {table["rope_type"] for table in tables if "rope_type" in table}


def choose_dtype(config: PreTrainedConfig, device: torch.device, name: str) -> torch.dtype:
    if name == "auto" and device.type == "cpu":
        return torch.float32
    chosen = config.dtype if name == "auto" else getattr(torch, name)
    return chosen if isinstance(chosen, torch.dtype) else torch.float32


def build(config: PreTrainedConfig, dtype: torch.dtype, folder: Path) -> Any:
    """The model on the meta device, for inference."""
    try:
        with torch.device("meta"):
            model = model_class(config)._from_config(config, dtype=dtype, attn_implementation=attention_kind(config))
    except Exception as error:  # modules raise what they like about sizes that do not fit
        raise BadModel(f"expected a model that transformers can build in {folder}, came {one_line(error)}") from None
    return model.eval()


def attention_kind(config: PreTrainedConfig) -> str:
    """Falcon's layers have attention of their own."""
    return NAME if model_class(config)._supports_attention_backend else "sdpa"


def model_class(config: PreTrainedConfig) -> Any:
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


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


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
