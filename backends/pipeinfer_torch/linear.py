"""Matrix products with few rows: the fastest that each device has."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Linear: TypeAlias = Callable[[Tensor], Tensor]

ROWS = 8
"""Weights are packed for about this many rows, which is what verification sends."""


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """[..., rows, inputs] to [..., rows, outputs] by `weight` [outputs, inputs].

    On a CPU, oneDNN's kernels with packed weights take 8 rows in little more than the time of one, several times
    faster than the BLAS behind `functional.linear`.
    """
    packed = pack(weight)
    if packed is None:
        return lambda x: functional.linear(x, weight, bias)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, packed, bias, "none", [], "")


def take(*modules: nn.Linear) -> Linear:
    """One product for modules with the same input, their outputs side by side. They give their weights up."""
    weight = torch.cat([module.weight for module in modules]) if len(modules) > 1 else modules[0].weight
    bias = None if modules[0].bias is None else torch.cat([module.bias for module in modules])
    for module in modules:
        module.to("meta")
    return linear(weight, bias)


def pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own layout, or None where this device, processor or build of torch has none for it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    except (RuntimeError, AttributeError):  # float16 and bfloat16 need instructions that older processors have not
        return None
    return packed
