"""Attention over cells. Query heads that share keys become further rows of one product, so keys are never repeated."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

NAME = "pipeinfer_cells"
"""The name under which transformers' own layers find `attention_forward`."""


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None = None
) -> Tensor:
    """What each row takes from the cells that it sees, [1, kv_heads, rows * group, head_size].

    `queries` [1, kv_heads, rows * group, head_size]; `keys` and `values` [1, kv_heads, window, head_size]; `mask`
    [rows * group, window] is added to the scores, after they were held below `softcap`.
    """
    if softcap is None:
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    scores = torch.tanh(queries @ keys.transpose(2, 3) * (scale / softcap)) * softcap
    return torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(values.dtype) @ values


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
