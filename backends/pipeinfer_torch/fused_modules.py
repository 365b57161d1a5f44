"""The modules that `fused_layers.py` takes its weights from: those of Llama, Mistral, Qwen2 and Qwen3, as transformers
has them and under the names that checkpoints give them.

Importing transformers' own takes a second of processor time, and every rank would pay for it as it starts.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

QKV_BIAS = {"mistral": False, "qwen2": True}
"""Model types that have them always or never; the others say so in `attention_bias`, which is of the output too."""


class UnfilledLinear(nn.Linear):
    """Not filled with random numbers, for which torch would import its compiler: a checkpoint has the weights."""

    def reset_parameters(self) -> None:
        pass


class UnfilledEmbedding(nn.Embedding):
    """As `UnfilledLinear`."""

    def reset_parameters(self) -> None:
        pass


class FusedModel(nn.Module):
    """Modules without a forward: `fused_layers.py` has it."""

    def __init__(self, config: "PreTrainedConfig") -> None:
        super().__init__()
        self.model = Base(config)
        self.lm_head = UnfilledLinear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def base_model(self) -> "Base":
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head


class Base(nn.Module):
    """All but the output matrix, in the order in which they run."""

    def __init__(self, config: "PreTrainedConfig") -> None:
        super().__init__()
        self.embed_tokens = UnfilledEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: "PreTrainedConfig") -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = RmsNorm(config.hidden_size, config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config)


class Attention(nn.Module):
    """Its four matrices, and Qwen3's norms of each head."""

    def __init__(self, config: "PreTrainedConfig") -> None:
        super().__init__()
        self.head_dim = head_size(config)
        self.scaling = self.head_dim**-0.5
        hidden, queries, keys = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        kind: Any = config.model_type
        bias = QKV_BIAS.get(kind, getattr(config, "attention_bias", False))
        self.q_proj = UnfilledLinear(hidden, queries * self.head_dim, bias=bias)
        self.k_proj = UnfilledLinear(hidden, keys * self.head_dim, bias=bias)
        self.v_proj = UnfilledLinear(hidden, keys * self.head_dim, bias=bias)
        self.o_proj = UnfilledLinear(queries * self.head_dim, hidden, bias=bias and kind not in QKV_BIAS)
        if kind == "qwen3":
            self.q_norm, self.k_norm = RmsNorm(self.head_dim, config), RmsNorm(self.head_dim, config)


class Mlp(nn.Module):
    """SwiGLU, or another activation in its place."""

    def __init__(self, config: "PreTrainedConfig") -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, getattr(config, "mlp_bias", False)
        self.gate_proj = UnfilledLinear(hidden, inner, bias=bias)
        self.up_proj = UnfilledLinear(hidden, inner, bias=bias)
        self.down_proj = UnfilledLinear(inner, hidden, bias=bias)
        self.act_fn = activation(config.hidden_act)


class RmsNorm(nn.Module):
    """Its weight and its epsilon."""

    def __init__(self, size: int, config: "PreTrainedConfig") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.variance_epsilon = config.rms_norm_eps


def head_size(config: "PreTrainedConfig") -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def activation(name: str) -> Any:
    if name == "silu":
        return nn.SiLU()
    from transformers.activations import ACT2FN  # of which few models need any

    return ACT2FN[name]


def rotary_frequencies(config: "PreTrainedConfig") -> tuple[Tensor, float]:
    """One for each plane of a head, and by what sines and cosines are scaled."""
    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # of which few models need any

        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
        return frequencies, scale
    size = head_size(config)
    return 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size), 1.0
