"""A larger model that says the same: function-preserving widening and deepening of a Llama model.

As in Chen, Goodfellow, Shlens: "Net2Net: Accelerating Learning via Knowledge Transfer" (ICLR 2016, arXiv 1511.05641).

Wider: every hidden unit, attention head and feed-forward unit is there `width` times. Whatever reads `width` equal
inputs has its weights divided by `width`, so that each sum stays what it was; equal copies leave RMSNorm's mean square,
RoPE and the scale of attention (heads keep their size) as they are. Deeper: a further layer is a copy of its
predecessor whose two output matrices are zero, so that it adds nothing to what passes through.

The result costs what any model of its shape costs, while its logits are the small one's up to float rounding; with a
width that is a power of two the stored weights lose nothing either. So a draft of the small model is accepted as often
as before.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pipeinfer.engine.huggingface.checkpoint import SINGLE

FORMAT = 1
"""Counts up when what is written changes, so that folders of an older version are not taken for new ones."""

WIDENED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
SILENCED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""What writes a layer's results into the residual stream."""

Tensors = dict[str, NDArray[Any]]


def grow(source: Path, folder: Path, *, width: int, layers: int) -> None:
    """Write to `folder` the model of `source`, `width` times as wide and with `layers` layers, no fewer than it has.

    `source` is the folder of a Llama model with one safetensors file.
    """
    config = json.loads((source / "config.json").read_bytes())
    grown = {**config, **{name: width * config[name] for name in WIDENED}, "num_hidden_layers": layers}
    tensors = load_file(source / SINGLE)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(grown, indent=2))
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    wide = {name: widen(name, tensor, width) for name, tensor in tensors.items()}
    save_file(dict(deepen(wide, config["num_hidden_layers"], layers)), folder / SINGLE, metadata={"format": "pt"})


def widen(name: str, tensor: NDArray[Any], width: int) -> NDArray[Any]:
    """A matrix [outputs, inputs] as [width * outputs, width * inputs], a norm [hidden] as [width * hidden].

    One row per token stay the embedding and the output matrix, which may be the same tensor: there the final norm is
    divided instead.
    """
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return np.tile(tensor, (1, width))
    is_matrix = tensor.ndim > 1
    grown = np.tile(tensor, (width, width) if is_matrix else width)
    if is_matrix or name == "model.norm.weight":
        grown /= width
    return grown


def deepen(tensors: Tensors, layers: int, wanted: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of `layers` layers as those of `wanted`, the further ones spread evenly among them."""
    for name, tensor in tensors.items():
        if not name.startswith("model.layers."):
            yield name, tensor
    for layer in range(wanted):
        origin = layer * layers // wanted
        is_copy = layer > 0 and origin == (layer - 1) * layers // wanted
        prefix = f"model.layers.{origin}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                part = name.removeprefix(prefix)
                silent = is_copy and part in SILENCED
                yield f"model.layers.{layer}.{part}", np.zeros_like(tensor) if silent else tensor
