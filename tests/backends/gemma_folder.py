"""Gemma 3 out of a GGUF file as a Hugging Face folder: numbers dequantised and stored as bfloat16, to be computed with
as float32, and a tokenizer made of the vocabulary and its scores."""

import json
import math

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from pipeinfer_llamacpp.gguf_file import GgufFile
from pipeinfer_llamacpp.library import F32, ggml

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
CONTROL, GIVEN = 3, 4
"""Types of tokens that are found in a text before it is cut into others: those that are no text, and those that are."""

ROWS = 1024
"""So many rows of a matrix are dequantised at a time, in memory that is used again and again."""


def write_folder(file, folder):
    from safetensors.torch import save_file  # Collecting tests imports no torch.

    folder.mkdir()
    source = GgufFile(file)
    (folder / "config.json").write_text(json.dumps(config_of(source)))
    tensors = dict(tensors_of(source))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer_of(source).save(str(folder / "tokenizer.json"), pretty=False)
    return folder


def config_of(source):
    """The local RoPE base and the scale of queries are Gemma 3's own, which llama.cpp has built in."""
    prefix = "attention."
    head = source.count(f"{prefix}key_length")
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(source.value("tokenizer.ggml.tokens")),
        "hidden_size": source.count("embedding_length"),
        "intermediate_size": source.count("feed_forward_length"),
        "num_hidden_layers": source.count("block_count"),
        "num_attention_heads": source.count(f"{prefix}head_count"),
        "num_key_value_heads": source.count(f"{prefix}head_count_kv"),
        "head_dim": head,
        "query_pre_attn_scalar": head,
        "max_position_embeddings": source.count("context_length"),
        "sliding_window": source.count(f"{prefix}sliding_window"),
        "rms_norm_eps": source.of_architecture(f"{prefix}layer_norm_rms_epsilon"),
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": source.of_architecture("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": source.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.value("tokenizer.ggml.padding_token_id"),
    }


def tensors_of(source):
    """By transformers' names. GGUF files hold what a norm multiplies with, the folder one less."""
    import torch

    for name, tensor in source.tensors.items():
        width, count = tensor.shape[0], math.prod(tensor.shape[1:])
        stored = np.frombuffer(source.data, np.uint8, tensor.stop - tensor.start, tensor.start).reshape(count, -1)
        numbers = torch.empty(count, width, dtype=torch.bfloat16)
        for start in range(0, count, ROWS):
            rows = dequantised(stored[start : start + ROWS], width, tensor.type)
            numbers[start : start + ROWS] = torch.from_numpy(rows - ("norm" in name))
        yield hf_name(name), numbers.reshape(tensor.shape[::-1])


def dequantised(rows, width, kind):
    """float32 [rows, width], by ggml's own function."""
    if kind == F32:
        return rows.view(np.float32)
    numbers = np.empty((len(rows), width), np.float32)
    ggml().ggml_get_type_traits(kind).contents.to_float(rows.ctypes.data, numbers.ctypes.data, numbers.size)
    return numbers


def hf_name(name):
    *block, kind, _ = name.split(".")
    layer = f"layers.{block[1]}." if block else ""
    return f"model.{layer}{NAMES[kind]}.weight"


def tokenizer_of(source):
    """Byte pairs whose merges are all the ways to put a token together, the likeliest tokens first."""
    tokens, scores, types = (source.value(f"tokenizer.ggml.{what}") for what in ("tokens", "scores", "token_type"))
    ids = {token: number for number, token in enumerate(tokens)}
    special = [number for number, kind in enumerate(types) if kind in (CONTROL, GIVEN)]
    made = [number for number in np.argsort(-np.array(scores), kind="stable") if types[number] == 1]
    merges = [
        (token[:cut], token[cut:])
        for token in (tokens[number] for number in made)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(tokens[n], special=types[n] == CONTROL, normalized=False) for n in special])
    begin = source.value("tokenizer.ggml.bos_token_id")
    around = {"single": f"{tokens[begin]} $A", "special_tokens": [(tokens[begin], begin)]}
    tokenizer.post_processor = processors.TemplateProcessing(**around)
    return tokenizer
