"""Matrix products with few rows: the fastest that each device has."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Linear: TypeAlias = Callable[[Tensor], Tensor]

ROWS = 8
"""Packed for about this many rows: what verification sends. One row is as fast."""


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """[rows, inputs] to [rows, outputs] by `weight` [outputs, inputs].

    On a CPU, oneDNN's kernels with packed weights take 2 to 8 rows in little more than the time of one, several times
    faster than the BLAS behind `functional.linear`; and a row's result does not depend on the rows beside it.
    """
    packed = pack(weight)
    if packed is None:
        return lambda x: functional.linear(x, weight, bias)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")


def pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own layout, or None where this device, processor or build of torch has none for it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    except (RuntimeError, AttributeError):  # float16 and bfloat16 need instructions that older processors have not
        return None
    return packed
