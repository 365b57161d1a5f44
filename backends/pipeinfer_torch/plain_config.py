"""config.json of a Llama model without anything unusual, read without transformers: to import that takes two seconds of
processor time, as long as torch itself, and every rank would pay for it as it starts.

Whatever is not in here, from a field that nobody knows to a number of another type, is for transformers to read.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]


class PlainRope(msgspec.Struct, forbid_unknown_fields=True):
    """Rotary frequencies that are not scaled, as transformers 5 writes them."""

    rope_theta: PositiveFloat
    rope_type: Literal["default"] = "default"


class PlainLlama(msgspec.Struct, forbid_unknown_fields=True, rename={"stored_as": "torch_dtype"}):
    """Under the names of the file, which are those of transformers' LlamaConfig. What has no value here that is
    certainly its value there has to be said in the file."""

    model_type: Literal["llama"]
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    rms_norm_eps: PositiveFloat
    hidden_act: Literal["silu"]
    tie_word_embeddings: bool
    eos_token_id: int | list[int]
    head_dim: Positive | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: PositiveFloat | None = None
    rope_parameters: Any = None
    rope_scaling: None = None
    stored_as: str | None = None
    dtype: Any = None

    # Of no meaning to a stage.
    architectures: list[str] = []
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    attention_dropout: float = 0.0
    initializer_range: float = 0.0
    pretraining_tp: int = 1
    use_cache: bool = True
    transformers_version: str = ""
    _name_or_path: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for what is not plain after all."""
        if self.rope_parameters is None and self.rope_theta is not None:
            rope = PlainRope(self.rope_theta)
        elif self.rope_theta is None:
            rope = msgspec.convert(self.rope_parameters, PlainRope)
        else:
            raise ValueError("two bases of rotary frequencies")
        self.rope_parameters = msgspec.structs.asdict(rope)
        self.dtype = getattr(torch, self.dtype or self.stored_as or "", None)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("heads that do not divide the width")


def read_plain(folder: Path) -> PlainLlama | None:
    """The configuration in `folder`, where it is that of a plain Llama model."""
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=PlainLlama)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
