"""Llama written down as plainly as possible: one whole sequence, float64, no cells, no batching. Slow and obvious."""

import json
import math

import numpy as np
from safetensors.numpy import load_file


def logits(folder, tokens, frequencies=None):
    """[tokens, vocabulary] of a Hugging Face folder; `frequencies` are RoPE's in radians per position, if not plain."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    if frequencies is None:
        frequencies = [config["rope_theta"] ** (-2 * pair / size) for pair in range(size // 2)]

    def norm(x, name):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config["rms_norm_eps"]) * weights[name]

    x = weights["model.embed_tokens.weight"][list(tokens)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        normed = norm(x, prefix + "input_layernorm.weight")
        queries, keys, values = (normed @ weights[f"{prefix}self_attn.{kind}_proj.weight"].T for kind in "qkv")
        mixed = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            query = rotate(columns(queries, head, size), frequencies)
            key = rotate(columns(keys, shared, size), frequencies)
            mixed.append(causal_softmax(query @ key.T / math.sqrt(size)) @ columns(values, shared, size))
        x = x + np.concatenate(mixed, axis=1) @ weights[prefix + "self_attn.o_proj.weight"].T
        normed = norm(x, prefix + "post_attention_layernorm.weight")
        gate = normed @ weights[prefix + "mlp.gate_proj.weight"].T
        up = normed @ weights[prefix + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[prefix + "mlp.down_proj.weight"].T
    output = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, "model.norm.weight") @ weights[output].T


def columns(x, head, size):
    return x[:, head * size : (head + 1) * size]


def rotate(x, frequencies):
    """The first half of the dimensions are one axis of each plane, the second half the other."""
    angles = np.outer(np.arange(len(x)), frequencies)
    first, second = np.split(x, 2, axis=1)
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
    )


def causal_softmax(scores):
    seen = np.exp(scores - scores.max(axis=1, keepdims=True)) * np.tri(len(scores))
    return seen / seen.sum(axis=1, keepdims=True)
