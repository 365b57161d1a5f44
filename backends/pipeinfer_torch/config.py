"""config.json as transformers reads it, and which models a stage computes rightly."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pipeinfer.engine.backend import BadModel
from pipeinfer.errors import one_line
from pipeinfer_torch.plain_config import read_plain

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FUSED = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
         "qwen3": "Qwen3ForCausalLM"}  # fmt: skip
"""Model types whose layers `fused_layers.py` computes: RMSNorm, rotary positions, grouped queries, SwiGLU. With the
names of their architectures."""

GENERIC = ("cohere", "cohere2", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4",
           "granite", "nemotron", "olmo", "olmo2", "olmo3", "phi", "phi3", "seed_oss", "smollm3", "stablelm",
           "starcoder2")
"""Model types whose layers `generic.py` runs as transformers has them. The tests compare each with the whole model."""


def read_config(folder: Path) -> "PreTrainedConfig":
    """Raises BadModel for a model that transformers has not, or that would be computed wrongly."""
    if (plain := read_plain(folder)) is not None:
        return cast("PreTrainedConfig", plain)
    from transformers import AutoConfig  # which takes as long to import as torch

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each configuration class checks its fields in its own way
        raise BadModel(f"expected the configuration of a model that transformers has in {folder / 'config.json'}, came"
                       f" {briefly(error)}") from None
    config = cast("PreTrainedConfig", config.get_text_config())
    check(config, folder)
    return config


def check(config: "PreTrainedConfig", folder: Path) -> None:
    known = (*FUSED, *GENERIC)
    if config.model_type not in known:
        raise BadModel(f"expected a model type of {', '.join(known)} in {folder}, came {config.model_type!r},"
                       " which is not split here: choose another model or another backend")
    if getattr(config, "quantization_config", None) is not None:
        raise BadModel(f"expected plain weights in {folder}, came quantised ones: choose the unquantised model, or a"
                       " GGUF file and the llama.cpp backend")
    if getattr(config, "alibi", False):
        raise BadModel(f"expected rotary positions in {folder}, came ALiBi: choose another model or another backend")
    changing = rope_kinds(config) & {"dynamic", "longrope"}
    if changing:
        raise BadModel(f"expected rotary frequencies that stay in {folder}, came {changing.pop()!r}, whose frequencies"
                       " change with the text's length while earlier cells keep theirs: choose another model")


def rope_kinds(config: "PreTrainedConfig") -> set[Any]:
    """Every rope type of the model: one, or one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    tables = [parameters, *(table for table in parameters.values() if isinstance(table, dict))]
    return {table["rope_type"] for table in tables if "rope_type" in table}


def choose_dtype(config: "PreTrainedConfig", device: torch.device, name: str) -> torch.dtype:
    """The torch dtype called `name`; "auto" is float32 on a CPU, else what the checkpoint was saved as."""
    if name == "auto" and device.type == "cpu":
        return torch.float32
    chosen = config.dtype if name == "auto" else getattr(torch, name)
    return chosen if isinstance(chosen, torch.dtype) else torch.float32


def briefly(error: Exception) -> str:
    """What transformers says, which may be pages."""
    return one_line(error)[:300] or type(error).__name__
