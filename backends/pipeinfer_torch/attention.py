"""Attention over cells. Query heads that share keys become further rows of one product, so keys are never repeated."""

import torch
from torch import Tensor
from torch.nn import functional


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
