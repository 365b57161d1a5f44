"""Small random models of many architectures as GGUF files, each with what is peculiar to it: layers that differ by
their number, windows shorter than the test's prompts, scaled embeddings, positions and norms before the first layer,
biases, experts, soft caps, tied and untied outputs."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from gguf_models import VOCAB, add_byte_level, gguf

HIDDEN, FFN, HEADS, KV_HEADS, SIZE, EXPERTS = 64, 128, 4, 2, 16, 4
WINDOW, CONTEXT = 8, 256

NONE = MappingProxyType({})


class Architecture(NamedTuple):
    """`models` for readers; `blocks(layer)` names a layer's tensors and their shapes [outputs, inputs]; `beside` those
    beside the layers. `fields` are metadata under the architecture's prefix, those of xIELU under their own;
    `plain_norm` is a layer norm instead of the root of the mean square; `because` is why not every split computes what
    the whole model does."""

    models: str
    blocks: Callable
    fields: Mapping = NONE
    beside: Mapping = NONE
    tied: bool = False
    layers: int = 6
    plain_norm: bool = False
    because: str = ""


def attention(*, bias=False, size=SIZE, heads=HEADS, kv_heads=KV_HEADS, out_bias=False):
    widths = {"attn_q": heads * size, "attn_k": kv_heads * size, "attn_v": kv_heads * size}
    shapes = {f"{name}.weight": (width, HIDDEN) for name, width in widths.items()}
    if bias:
        shapes |= {f"{name}.bias": (width,) for name, width in widths.items()}
    if out_bias:
        shapes["attn_output.bias"] = (HIDDEN,)
    return shapes | {"attn_output.weight": (HIDDEN, heads * size)}


def fused_attention(*, bias=False, heads=HEADS, kv_heads=KV_HEADS, out_bias=False):
    width = (heads + 2 * kv_heads) * SIZE
    shapes = {"attn_qkv.weight": (width, HIDDEN), "attn_output.weight": (HIDDEN, heads * SIZE)}
    biases = {"attn_qkv.bias": (width,)} if bias else {}
    return shapes | biases | ({"attn_output.bias": (HIDDEN,)} if out_bias else {})


def gated(ffn=FFN, suffix=""):
    return {f"ffn_gate{suffix}.weight": (ffn, HIDDEN), **plain(ffn, suffix)}


def plain(ffn=FFN, suffix="", *, bias=False, widened=1):
    shapes = {f"ffn_up{suffix}.weight": (widened * ffn, HIDDEN), f"ffn_down{suffix}.weight": (HIDDEN, ffn)}
    return shapes | ({"ffn_up.bias": (ffn,), "ffn_down.bias": (HIDDEN,)} if bias else {})


def experts(*, bias=False):
    shapes = {
        "ffn_gate_inp.weight": (EXPERTS, HIDDEN),
        "ffn_gate_exps.weight": (EXPERTS, FFN, HIDDEN),
        "ffn_up_exps.weight": (EXPERTS, FFN, HIDDEN),
        "ffn_down_exps.weight": (EXPERTS, HIDDEN, FFN),
    }
    biases = {"ffn_gate_inp.bias": (EXPERTS,)} if bias else {}
    return (
        shapes
        | biases
        | (
            {f"ffn_{name}_exps.bias": (EXPERTS, FFN if name != "down" else HIDDEN) for name in ("gate", "up", "down")}
            if bias
            else {}
        )
    )


def norms(*names, bias=False, width=HIDDEN):
    shapes = {f"{name}.weight": (width,) for name in names}
    return shapes | ({f"{name}.bias": (width,) for name in names} if bias else {})


BEFORE = ("attn_norm", "ffn_norm")
AFTER = ("post_attention_norm", "post_ffw_norm")
OF_HEADS = ("attn_q_norm", "attn_k_norm")
MIXTURE = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": FFN}
WINDOWED = {"attention.sliding_window": WINDOW}
OUTPUT_BIAS = {"output_norm.bias": (HIDDEN,)}
WIDE = {"attention.key_length": 32, "attention.value_length": 32}


def dense_then_experts(layer):
    shared = gated(FFN, "_shexp")
    return norms(*BEFORE) | attention() | (gated() if layer < 2 else experts() | shared)


def heads_by_layer(layer):
    """Of OpenELM: the layers differ in heads and width."""
    heads, ffn = 4 + 2 * (layer % 2), FFN + 32 * layer
    return norms(*BEFORE) | norms(*OF_HEADS, width=SIZE) | fused_attention(heads=heads) | gated(ffn)


def recurrent():
    return norms("attn_norm") | {
        "ssm_in.weight": (2 * FFN, HIDDEN),
        "ssm_conv1d.weight": (FFN, 4),
        "ssm_conv1d.bias": (FFN,),
        "ssm_x.weight": (12, FFN),
        "ssm_dt.weight": (FFN, 4),
        "ssm_dt.bias": (FFN,),
        "ssm_a": (FFN, 4),
        "ssm_d": (FFN,),
        "ssm_out.weight": (HIDDEN, FFN),
    }


def gpt(_):
    return norms(*BEFORE, bias=True) | fused_attention(bias=True, kv_heads=HEADS, out_bias=True) | plain(bias=True)


ARCHITECTURES = {
    "llama": Architecture("Llama, Mistral", lambda _: norms(*BEFORE) | attention() | gated()),
    "llama, scaled RoPE": Architecture(
        "Llama 3.1 and later",
        lambda _: norms(*BEFORE) | attention() | gated(),
        beside={"rope_freqs.weight": (SIZE // 2,)},
    ),
    "llama, experts": Architecture(
        "Mixtral", lambda _: norms(*BEFORE) | attention() | experts(), {"expert_count": EXPERTS, "expert_used_count": 2}
    ),
    "gemma": Architecture("Gemma", lambda _: norms(*BEFORE) | attention(size=32) | gated(), WIDE, tied=True),
    "gemma2": Architecture(
        "Gemma 2",
        lambda _: norms(*BEFORE, *AFTER) | attention(size=32) | gated(),
        WIDE | WINDOWED | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0},
        tied=True,
    ),
    "gemma3": Architecture(
        "Gemma 3",
        lambda _: norms(*BEFORE, *AFTER) | norms(*OF_HEADS, width=32) | attention(size=32) | gated(),
        WIDE | WINDOWED | {"rope.freq_base": 1e6},
        tied=True,
        layers=8,
    ),
    "qwen2": Architecture("Qwen 2, 2.5", lambda _: norms(*BEFORE) | attention(bias=True) | gated()),
    "qwen2moe": Architecture(
        "Qwen 1.5 and 2 with experts",
        lambda _: (
            norms(*BEFORE)
            | attention(bias=True)
            | experts()
            | gated(FFN, "_shexp")
            | {"ffn_gate_inp_shexp.weight": (HIDDEN,)}
        ),
        MIXTURE,
    ),
    "qwen3": Architecture("Qwen 3", lambda _: norms(*BEFORE) | norms(*OF_HEADS, width=SIZE) | attention() | gated()),
    "qwen3moe": Architecture(
        "Qwen 3 with experts",
        lambda _: norms(*BEFORE) | norms(*OF_HEADS, width=SIZE) | attention() | experts(),
        MIXTURE,
    ),
    "phi2": Architecture(
        "Phi 1, 1.5, 2",
        lambda _: norms("attn_norm", bias=True) | attention(bias=True, out_bias=True) | plain(bias=True),
        {"rope.dimension_count": 8},
        OUTPUT_BIAS | {"output.bias": (VOCAB,)},
        plain_norm=True,
    ),
    "phi3": Architecture(
        "Phi 3, 3.5, 4",
        lambda _: norms(*BEFORE) | fused_attention() | plain(widened=2),
        {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.2},
        {"rope_factors_long.weight": (SIZE // 2,), "rope_factors_short.weight": (SIZE // 2,)},
    ),
    "falcon": Architecture(
        "Falcon",
        lambda _: norms("attn_norm", "attn_norm_2", bias=True) | fused_attention() | plain(),
        beside=OUTPUT_BIAS,
        plain_norm=True,
    ),
    "gpt2": Architecture(
        "GPT-2",
        gpt,
        {"attention.head_count_kv": HEADS},
        beside=OUTPUT_BIAS | {"position_embd.weight": (CONTEXT, HIDDEN)},
        tied=True,
        plain_norm=True,
    ),
    "gptneox": Architecture(
        "GPT-NeoX, Pythia",
        gpt,
        {"attention.head_count_kv": HEADS, "use_parallel_residual": True, "rope.dimension_count": 8},
        OUTPUT_BIAS,
        plain_norm=True,
    ),
    "bloom": Architecture(
        "BLOOM",
        gpt,
        {"attention.head_count_kv": HEADS},
        beside=OUTPUT_BIAS | norms("token_embd_norm", bias=True),
        tied=True,
        plain_norm=True,
    ),
    "mpt": Architecture(
        "MPT",
        lambda _: norms(*BEFORE) | fused_attention(kv_heads=HEADS) | plain(),
        {"attention.head_count_kv": HEADS, "attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 2.0},
        tied=True,
        plain_norm=True,
    ),
    "starcoder": Architecture(
        "StarCoder",
        lambda _: norms(*BEFORE, bias=True) | fused_attention(bias=True, kv_heads=1, out_bias=True) | plain(bias=True),
        {"attention.head_count_kv": 1},
        OUTPUT_BIAS | {"position_embd.weight": (CONTEXT, HIDDEN)},
        plain_norm=True,
    ),
    "starcoder2": Architecture(
        "StarCoder 2",
        lambda _: norms(*BEFORE, bias=True) | attention(bias=True, out_bias=True) | plain(bias=True),
        beside=OUTPUT_BIAS,
        tied=True,
        plain_norm=True,
    ),
    "olmo2": Architecture(
        "OLMo 2, 3",
        lambda _: (
            norms(*AFTER)
            | {"attn_q_norm.weight": (HIDDEN,), "attn_k_norm.weight": (KV_HEADS * SIZE,)}
            | attention()
            | gated()
        ),
        WINDOWED,
    ),
    "granite": Architecture(
        "Granite 3",
        lambda _: norms(*BEFORE) | attention() | gated(),
        {"embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.1, "logit_scale": 8.0},
        tied=True,
    ),
    "minicpm": Architecture("MiniCPM", lambda _: norms(*BEFORE) | attention() | gated(), tied=True),
    "command-r": Architecture(
        "Command R",
        lambda _: norms("attn_norm") | attention() | gated(),
        {"logit_scale": 0.5},
        tied=True,
        plain_norm=True,
    ),
    "cohere2": Architecture(
        "Command R7B, Command A",
        lambda _: norms("attn_norm") | attention() | gated(),
        WINDOWED | {"logit_scale": 0.5},
        tied=True,
        plain_norm=True,
    ),
    "stablelm": Architecture(
        "StableLM",
        lambda _: norms(*BEFORE, bias=True) | attention(bias=True) | gated(),
        {"rope.dimension_count": 8},
        OUTPUT_BIAS,
        plain_norm=True,
    ),
    "nemotron": Architecture(
        "Nemotron, Minitron",
        lambda _: norms(*BEFORE, bias=True) | attention() | plain(),
        beside=OUTPUT_BIAS,
        plain_norm=True,
    ),
    "glm4": Architecture(
        "GLM 4",
        lambda _: norms(*BEFORE, *AFTER) | attention(bias=True) | plain(widened=2),
        {"rope.dimension_count": 8},
    ),
    "gpt-oss": Architecture(
        "gpt-oss",
        lambda _: (
            norms("attn_norm", "post_attention_norm")
            | attention(bias=True, out_bias=True)
            | experts(bias=True)
            | {"attn_sinks.weight": (HEADS,)}
        ),
        WINDOWED | MIXTURE,
    ),
    "deepseek": Architecture(
        "DeepSeek",
        dense_then_experts,
        MIXTURE | {"leading_dense_block_count": 2, "expert_shared_count": 1},
    ),
    "openelm": Architecture(
        "OpenELM",
        heads_by_layer,
        {
            "attention.head_count": [4 + 2 * (layer % 2) for layer in range(6)],
            "attention.head_count_kv": 6 * [KV_HEADS],
            "feed_forward_length": [FFN + 32 * layer for layer in range(6)],
        },
        tied=True,
    ),
    "apertus": Architecture(
        "Apertus",
        lambda _: norms(*BEFORE) | norms(*OF_HEADS, width=SIZE) | attention() | plain(),
        {
            f"xielu.{name}": [start + 0.1 * layer for layer in range(6)]
            for name, start in (("alpha_n", 0.5), ("alpha_p", 0.6), ("beta", 0.5), ("eps", 0.01))
        },
    ),
    "smollm3": Architecture(
        "SmolLM 3",
        lambda _: norms(*BEFORE) | attention() | gated(),
        tied=True,
        layers=8,
        because="every fourth layer is without RoPE, by its number: cut before layers 4, 8, 12, ...",
    ),
    "gemma2, 27B": Architecture(
        "Gemma 2 27B",
        lambda _: norms(*BEFORE, *AFTER) | attention(size=32) | gated(),
        WIDE | WINDOWED,
        tied=True,
        layers=46,
        because="attention is scaled in another way where there are exactly 46 layers",
    ),
    "gemma3, 27B": Architecture(
        "Gemma 3 27B",
        lambda _: norms(*BEFORE, *AFTER) | norms(*OF_HEADS, width=32) | attention(size=32) | gated(),
        WIDE | WINDOWED,
        tied=True,
        layers=62,
        because="attention is scaled in another way where there are exactly 62 layers",
    ),
    "baichuan": Architecture(
        "Baichuan 7B, 13B",
        lambda _: norms(*BEFORE) | attention(kv_heads=HEADS) | gated(),
        {"attention.head_count_kv": HEADS},
        layers=32,
        because="positions enter in one way where there are exactly 32 layers, in another where there are 40",
    ),
    "mamba": Architecture(
        "Mamba",
        lambda _: recurrent(),
        {"ssm.conv_kernel": 4, "ssm.inner_size": FFN, "ssm.state_size": 4, "ssm.time_step_rank": 4},
        because="it remembers a state, not cells: no tag can tell two continuations apart",
    ),
}


def write_architecture(path, name, seed=0):
    """Write the model and give its path back."""
    model = ARCHITECTURES[name]
    architecture = name.partition(",")[0]
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (fields_of(model) | model.fields).items():
        add_field(writer, key if key.startswith("xielu.") else f"{architecture}.{key}", value)
    add_byte_level(writer)
    random = np.random.default_rng(seed)
    for tensor, shape in tensors_of(model):
        writer.add_tensor(tensor, drawn(random, tensor, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fields_of(model):
    epsilon = "attention.layer_norm_epsilon" if model.plain_norm else "attention.layer_norm_rms_epsilon"
    return {
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "block_count": model.layers,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        epsilon: 1e-5,
    }


def add_field(writer, key, value):
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_array(key, value)


def tensors_of(model):
    yield "token_embd.weight", (VOCAB, HIDDEN)
    yield from model.beside.items()
    for layer in range(model.layers):
        yield from ((f"blk.{layer}.{tensor}", shape) for tensor, shape in model.blocks(layer).items())
    yield "output_norm.weight", (HIDDEN,)
    if not model.tied:
        yield "output.weight", (VOCAB, HIDDEN)


def drawn(random, name, shape):
    """Norms and factors about one, biases small, matrices that keep a row's length; queries and keys twice as long, so
    that it matters which cells are seen."""
    if name.endswith(".bias"):
        tensor = 0.3 * random.standard_normal(shape)
    elif len(shape) == 1 and "shexp" not in name:
        tensor = random.uniform(0.5, 2.0, shape)
    else:
        tensor = (2 if "attn_q" in name or "attn_k" in name else 1) * random.standard_normal(shape) / np.sqrt(shape[-1])
    return tensor.astype(np.float32)
