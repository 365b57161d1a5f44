"""Random models as GGUF files, in architectures and quantisations that are not exported from Hugging Face folders."""

import ctypes

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")

import gguf
from gguf import GGMLQuantizationType as Type

from pipeinfer.testing.models import byte_tokenizer
from pipeinfer_llamacpp.library import ggml

HEADS, KV_HEADS, EXPERTS, STATE, VOCAB = 4, 2, 4, 4, 320
WRITTEN_AS = {"mixtral": "llama"}
"""Models that share an architecture's name in GGUF."""


def write_gguf(
    path, model="llama", kind=Type.F32, *, hidden=64, layers=4, tied=False, per_layer=False, change=None,
    tokenizer=None, per_file=0,
):  # fmt: skip
    """Write a model whose matrices are stored as `kind`, and give its path back: that of the first file where there are
    `per_file` tensors in each.

    `per_layer` writes what may differ between layers as arrays; `change(tensors)` edits the dictionary of tensors;
    `tokenizer(writer)` adds another one than single bytes.
    """
    architecture = WRITTEN_AS.get(model, model)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=per_file)
    add_metadata(writer, model, hidden, layers, per_layer)
    (tokenizer or add_byte_level)(writer)
    tensors = dict(random_tensors(BLOCKS[model], hidden, layers, tied))
    for name, tensor in (change(tensors) if change else tensors).items():
        stored, kept = quantise(tensor, kind)
        writer.add_tensor(name, stored, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if per_file else path


def quantise(tensor, kind):
    """By ggml's own function, since the gguf package cannot write K-quants. Vectors stay float32."""
    if tensor.ndim == 1 or kind == Type.F32:
        return tensor, Type.F32
    library = ggml()
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    arrays, numbers = 2 * [ctypes.c_void_p], 3 * [ctypes.c_int64]
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *arrays, *numbers, ctypes.c_void_p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    *outer, length = tensor.shape
    source = np.ascontiguousarray(tensor)
    stored = np.empty((*outer, length // block * size), np.uint8)
    library.ggml_quantize_chunk(kind, source.ctypes.data, stored.ctypes.data, 0, tensor.size // length, length, None)
    return stored, kind


def add_metadata(writer, model, hidden, layers, per_layer):
    def each(value):
        return [value] * layers if per_layer else value

    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(each(2 * hidden))
    writer.add_head_count(each(HEADS))
    writer.add_head_count_kv(each(KV_HEADS))
    if model == "falcon":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
    if BLOCKS[model] in (mixtral, qwen2moe, qwen3moe):
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(2 * hidden)
    if model == "mamba":
        writer.add_ssm_conv_kernel(STATE)
        writer.add_ssm_inner_size(2 * hidden)
        writer.add_ssm_state_size(STATE)
        writer.add_ssm_time_step_rank(STATE)


def add_sentencepiece(writer):
    """Words with their scores, and a token for each byte."""
    words = ["<unk>", "<s>", "</s>", "▁", "d", "e", "f", "de", "▁de"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    words += [f"<unused {number}>" for number in range(VOCAB - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(number) for number in range(VOCAB)])
    special = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types(special + 6 * [gguf.TokenType.NORMAL] + 256 * [gguf.TokenType.BYTE]
                           + (VOCAB - 265) * [gguf.TokenType.UNUSED])  # fmt: skip
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def add_byte_level(writer):
    words = byte_tokenizer(VOCAB).get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(words, key=words.get))
    writer.add_token_merges(["<|never|> <|never|>"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def random_tensors(block, hidden, layers, tied):
    random = np.random.default_rng(0)

    def matrix(*shape):
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def norm(size=hidden):
        return random.uniform(0.5, 1.5, size).astype(np.float32)

    yield "token_embd.weight", matrix(VOCAB, hidden)
    for layer in range(layers):
        yield from ((f"blk.{layer}.{name}", tensor) for name, tensor in block(matrix, norm, hidden).items())
    yield "output_norm.weight", norm()
    if block is falcon:
        yield "output_norm.bias", matrix(hidden)
    if not tied:
        yield "output.weight", matrix(VOCAB, hidden)


def attention(matrix, norm, hidden):
    keys = hidden // HEADS * KV_HEADS
    return {
        "attn_norm.weight": norm(),
        "attn_q.weight": 2 * matrix(hidden, hidden),
        "attn_k.weight": 2 * matrix(keys, hidden),
        "attn_v.weight": matrix(keys, hidden),
        "attn_output.weight": matrix(hidden, hidden),
        "ffn_norm.weight": norm(),
    }


def biased_attention(matrix, norm, hidden):
    keys = hidden // HEADS * KV_HEADS
    biases = {"attn_q.bias": matrix(hidden), "attn_k.bias": matrix(keys), "attn_v.bias": matrix(keys)}
    return attention(matrix, norm, hidden) | biases


def normed_attention(matrix, norm, hidden):
    head = hidden // HEADS
    return attention(matrix, norm, hidden) | {"attn_q_norm.weight": norm(head), "attn_k_norm.weight": norm(head)}


def feed_forward(matrix, hidden, suffix=""):
    return {
        f"ffn_gate{suffix}.weight": matrix(2 * hidden, hidden),
        f"ffn_up{suffix}.weight": matrix(2 * hidden, hidden),
        f"ffn_down{suffix}.weight": matrix(hidden, 2 * hidden),
    }


def experts(matrix, hidden):
    return {
        "ffn_gate_inp.weight": matrix(EXPERTS, hidden),
        "ffn_gate_exps.weight": matrix(EXPERTS, 2 * hidden, hidden),
        "ffn_up_exps.weight": matrix(EXPERTS, 2 * hidden, hidden),
        "ffn_down_exps.weight": matrix(EXPERTS, hidden, 2 * hidden),
    }


def llama(matrix, norm, hidden):
    return attention(matrix, norm, hidden) | feed_forward(matrix, hidden)


def mixtral(matrix, norm, hidden):
    return attention(matrix, norm, hidden) | experts(matrix, hidden)


def qwen2(matrix, norm, hidden):
    return biased_attention(matrix, norm, hidden) | feed_forward(matrix, hidden)


def qwen2moe(matrix, norm, hidden):
    shared = {"ffn_gate_inp_shexp.weight": matrix(hidden)} | feed_forward(matrix, hidden, "_shexp")
    return biased_attention(matrix, norm, hidden) | experts(matrix, hidden) | shared


def qwen3(matrix, norm, hidden):
    return normed_attention(matrix, norm, hidden) | feed_forward(matrix, hidden)


def qwen3moe(matrix, norm, hidden):
    return normed_attention(matrix, norm, hidden) | experts(matrix, hidden)


def falcon(matrix, norm, hidden):
    """Of the kind of Falcon 40B: a norm of its own before the feed-forward network, which runs beside attention."""
    keys = hidden // HEADS * KV_HEADS
    return {
        "attn_norm.weight": norm(),
        "attn_norm.bias": matrix(hidden),
        "attn_norm_2.weight": norm(),
        "attn_norm_2.bias": matrix(hidden),
        "attn_qkv.weight": matrix(hidden + 2 * keys, hidden),
        "attn_output.weight": matrix(hidden, hidden),
        "ffn_up.weight": matrix(2 * hidden, hidden),
        "ffn_down.weight": matrix(hidden, 2 * hidden),
    }


def mamba(matrix, norm, hidden):
    return {
        "attn_norm.weight": norm(),
        "ssm_in.weight": matrix(4 * hidden, hidden),
        "ssm_conv1d.weight": matrix(2 * hidden, STATE),
        "ssm_conv1d.bias": matrix(2 * hidden),
        "ssm_x.weight": matrix(3 * STATE, 2 * hidden),
        "ssm_dt.weight": matrix(2 * hidden, STATE),
        "ssm_dt.bias": matrix(2 * hidden),
        "ssm_a": -abs(matrix(2 * hidden, STATE)),
        "ssm_d": matrix(2 * hidden),
        "ssm_out.weight": matrix(hidden, 2 * hidden),
    }


BLOCKS = {
    "llama": llama,
    "mixtral": mixtral,
    "qwen2": qwen2,
    "qwen2moe": qwen2moe,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "falcon": falcon,
    "gemma": llama,
    "mamba": mamba,
}
"""The tensors of one layer of each kind of model."""
