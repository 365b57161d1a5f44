"""The layers of Llama, Mistral, Qwen2 and Qwen3 in as few tensor operations as their arithmetic needs.

For few rows a layer's time beyond its matrix products is the number of operations, some microseconds each. So q, k and
v are one product, gate and up another, the residual is added in place, and keys and values go to their cells together.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeinfer.engine.backend import AbortCheck
from pipeinfer_torch.attention import attend
from pipeinfer_torch.cells import CellsView, KvCells
from pipeinfer_torch.fused_modules import rotary_frequencies
from pipeinfer_torch.linear import take
from pipeinfer_torch.skeleton import Skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Norm: TypeAlias = Callable[[Tensor], Tensor]


class RotaryAngles(NamedTuple):
    """Rotary positions of a batch, [rows, 1, head_size] each; the first half of `sin` is negated."""

    cos: Tensor
    sin: Tensor


class FusedLayers:
    """Layers [first, stop) with the embedding before or the head behind, as far as the stage has them."""

    def __init__(self, skeleton: Skeleton, first: int, stop: int, cells: KvCells) -> None:
        base = skeleton.base
        self._cells = cells
        self._rotary = Rotary(skeleton.config, skeleton.device, skeleton.dtype)
        self._embedding = base.embed_tokens.weight if first == 0 else None
        self._layers = [FusedLayer(skeleton.layers[layer], skeleton.reach(layer)) for layer in range(first, stop)]
        self._head = OutputHead(base.norm, skeleton.model.lm_head) if stop == len(skeleton.layers) else None
        cells.allocate(self._layers[0].kv_heads, self._layers[0].head_size)

    def use(self, cells: KvCells) -> None:
        """What comes next is of a text in these."""
        self._cells = cells

    def run(
        self, entering: Tensor, positions: Tensor, view: CellsView, outputs: int, abort: AbortCheck
    ) -> Tensor | None:
        """From token ids [rows] or hidden states [rows, hidden_size], which may be overwritten, to hidden states or
        logits [outputs, vocabulary]; None when aborted."""
        x = entering if self._embedding is None else functional.embedding(entering, self._embedding)
        angles = self._rotary.angles_of(positions)
        masks = {reach: self._layers[0].group_mask(mask) for reach, mask in view.masks.items()}
        for layer, cells in zip(self._layers, self._cells.layers, strict=True):
            if abort():
                return None
            layer.run(x, angles, cells, view, masks[layer.reach])
        if self._head is None:
            return x
        return None if abort() else self._head.logits(x[len(x) - outputs :])


class FusedLayer:
    """One decoder layer; takes its weights out of `fused_modules.Layer`."""

    def __init__(self, layer: Any, reach: int | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.reach = reach
        self.head_size = attention.head_dim
        self.heads = attention.q_proj.out_features // self.head_size
        self.kv_heads = attention.k_proj.out_features // self.head_size
        self.group = self.heads // self.kv_heads
        self.scale = attention.scaling
        self.attention_norm = norm_of(layer.input_layernorm)
        self.mlp_norm = norm_of(layer.post_attention_layernorm)
        self.qkv = take(attention.q_proj, attention.k_proj, attention.v_proj)
        self.qk_norm = head_norm(attention, self.heads, self.kv_heads) if hasattr(attention, "q_norm") else None
        self.attention_out = take(attention.o_proj)
        self.gate_up = take(mlp.gate_proj, mlp.up_proj)
        self.activation = mlp.act_fn
        self.down = take(mlp.down_proj)

    def run(self, x: Tensor, angles: RotaryAngles, cells: Tensor, view: CellsView, mask: Tensor) -> None:
        """Add to the rows `x` [rows, hidden_size] what the layer finds; put their keys and values into `cells`."""
        x += self.attention_out(self._attend(self.attention_norm(x), angles, cells, view, mask))
        gate, up = self.gate_up(self.mlp_norm(x)).view(x.shape[0], 2, -1).unbind(1)
        x += self.down(self.activation(gate) * up)

    def group_mask(self, mask: Tensor) -> Tensor:
        """[rows, window] to [rows * group, window], as the rows of `_group`."""
        return mask.repeat_interleave(self.group, dim=0)

    def _attend(self, x: Tensor, angles: RotaryAngles, cells: Tensor, view: CellsView, mask: Tensor) -> Tensor:
        rows = x.shape[0]
        qkv = self.qkv(x).view(rows, self.heads + 2 * self.kv_heads, self.head_size)
        self._rotate(qkv[:, : -self.kv_heads], angles)
        keys_and_values = qkv[:, self.heads :].view(rows, 2, 1, self.kv_heads, self.head_size)
        cells[:, :, :, view.taken] = keys_and_values.permute(1, 2, 3, 0, 4)
        keys, values = cells.narrow(3, 0, view.window).unbind()
        mixed = attend(self._group(qkv[:, : self.heads]), keys, values, mask, self.scale)
        return mixed.view(self.kv_heads, rows, -1).transpose(0, 1).reshape(rows, -1)

    def _rotate(self, queries_and_keys: Tensor, angles: RotaryAngles) -> None:
        """In place, after the norm that some models have there."""
        x = queries_and_keys if self.qk_norm is None else self.qk_norm(queries_and_keys)
        swapped = x.roll(self.head_size // 2, -1)
        torch.addcmul(x * angles.cos, swapped, angles.sin, out=queries_and_keys)

    def _group(self, queries: Tensor) -> Tensor:
        """[rows, heads, head_size] to [1, kv_heads, rows * group, head_size]."""
        rows = queries.shape[0]
        grouped = queries.view(rows, self.kv_heads, self.group, self.head_size)
        return grouped.transpose(0, 1).reshape(1, self.kv_heads, rows * self.group, self.head_size)


class Rotary:
    """Rotary positions by the frequencies of the model, whatever their scaling."""

    def __init__(self, config: "PreTrainedConfig", device: torch.device, dtype: torch.dtype) -> None:
        frequencies, self._scale = rotary_frequencies(config)
        # Each frequency stands for both dimensions of its plane. The minus sign lands on the first one's sine.
        self._frequencies = torch.cat((-frequencies, frequencies)).to(device)
        self._dtype = dtype

    def angles_of(self, positions: Tensor) -> RotaryAngles:
        angles = torch.outer(positions.float(), self._frequencies)[:, None]
        return RotaryAngles((angles.cos() * self._scale).to(self._dtype), (angles.sin() * self._scale).to(self._dtype))


def norm_of(module: Any) -> Norm:
    return rms_norm(module.weight, module.variance_epsilon)


def rms_norm(weight: Tensor, eps: float) -> Norm:
    """RMSNorm over the last dimension, with a weight for each or, [heads, size], for each of several heads."""
    if weight.is_cuda:
        return lambda x: functional.rms_norm(x, x.shape[-1:], None, eps) * weight
    # On a CPU torch composes it of twice as many operations.
    size = weight.shape[-1]
    scaled = weight.float() * math.sqrt(size)
    least = torch.full((1,), eps * size)

    def normalise(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.mul(x, torch.addcmul(least, length, length).rsqrt_()).mul_(scaled).to(x.dtype)

    return normalise


def head_norm(attention: Any, heads: int, kv_heads: int) -> Norm:
    """The norms of query and key heads as one."""
    queries, keys = attention.q_norm, attention.k_norm
    weight = torch.cat((queries.weight.expand(heads, -1), keys.weight.expand(kv_heads, -1)))
    return rms_norm(weight, queries.variance_epsilon)


class OutputHead:
    """The final norm and the output matrix."""

    def __init__(self, norm: nn.Module, output: nn.Linear) -> None:
        self._norm = norm_of(norm)
        self._output = take(output)

    def logits(self, x: Tensor) -> Tensor:
        return self._output(self._norm(x))
