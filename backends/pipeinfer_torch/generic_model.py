"""Any model as transformers builds it, its attention over cells. To import this takes a second."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PreTrainedConfig

from pipeinfer_torch.attention import attend

NAME = "pipeinfer_cells"
"""The name under which transformers' own layers find `attention_forward`."""


def build(config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """The model on the current device."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    attention = NAME if kind._supports_attention_backend else "sdpa"  # Falcon's layers have attention of their own
    return kind._from_config(config, dtype=dtype, attn_implementation=attention)


def attention_forward(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: [1, heads, rows, head_size] to [1, rows, heads, head_size]."""
    heads, rows, head_size = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    grouped = query.reshape(1, kv_heads, group * rows, head_size)
    mask = attention_mask[0, 0].repeat(group, 1)
    mixed = attend(grouped, key, value, mask, scaling, softcap)
    return mixed.reshape(1, heads, rows, -1).transpose(1, 2), None


AttentionInterface.register(NAME, attention_forward)
