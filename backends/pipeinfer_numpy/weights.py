"""The weights of one stage, read from a checkpoint and rearranged for few rows per forward.

Matrices are kept [inputs, outputs], the layout in which a row times the matrix measures fastest. Whatever can be
multiplied into a matrix once is not computed for every row: the RMSNorm weights before it, the 1/sqrt(head size) of
attention and the 1/2 of SwiGLU (see `model.swiglu`).
"""

import math
from typing import NamedTuple

import numpy as np

from pipeinfer.engine.backend import Hidden
from pipeinfer.engine.huggingface.checkpoint import HEAD, Checkpoint
from pipeinfer_numpy.config import LlamaConfig


class LayerWeights(NamedTuple):
    """One decoder layer; q, k and v lie side by side in one matrix, as do gate and up."""

    qkv: Hidden  # [hidden, (heads + 2 kv_heads) * head_size]
    attention_out: Hidden  # [heads * head_size, hidden]
    gate_up: Hidden  # [hidden, 2 * ffn]
    down: Hidden  # [ffn, hidden]


class OutputHead(NamedTuple):
    """The final norm and the output matrix, as stored: with tied embeddings it is the embedding."""

    norm: Hidden  # [hidden]
    output: Hidden  # [vocabulary, hidden]


class StageWeights(NamedTuple):
    """Layers [i, j); the first stage alone has the embedding [vocabulary, hidden], the last alone the head."""

    embedding: Hidden | None
    layers: list[LayerWeights]
    head: OutputHead | None


def read_weights(checkpoint: Checkpoint, config: LlamaConfig, layers: tuple[int, int]) -> StageWeights:
    """Read the tensors of layers [i, j) and no others. Raises BadModel."""
    first, stop = layers
    embedding = read_embedding(checkpoint, config) if first == 0 else None
    stack = [read_layer(checkpoint, config, f"model.layers.{layer}.") for layer in range(first, stop)]
    head = read_head(checkpoint, config, embedding) if stop == config.num_hidden_layers else None
    return StageWeights(embedding, stack, head)


def read_embedding(checkpoint: Checkpoint, config: LlamaConfig) -> Hidden:
    return checkpoint.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)


def read_head(checkpoint: Checkpoint, config: LlamaConfig, embedding: Hidden | None) -> OutputHead:
    norm = checkpoint.tensor("model.norm.weight", config.hidden_size)
    if not config.tie_word_embeddings or checkpoint.holds(HEAD):
        return OutputHead(norm, checkpoint.tensor(HEAD, config.vocab_size, config.hidden_size))
    return OutputHead(norm, read_embedding(checkpoint, config) if embedding is None else embedding)


def read_layer(checkpoint: Checkpoint, config: LlamaConfig, prefix: str) -> LayerWeights:
    hidden, ffn = config.hidden_size, config.intermediate_size
    heads, kv_heads, head_size = config.num_attention_heads, config.kv_heads, config.head_size

    def read(name: str, *shape: int) -> Hidden:
        return checkpoint.tensor(f"{prefix}{name}.weight", *shape)

    queries = rotary_pairs(read("self_attn.q_proj", heads * head_size, hidden), head_size)
    queries *= 1 / math.sqrt(head_size)
    keys = rotary_pairs(read("self_attn.k_proj", kv_heads * head_size, hidden), head_size)
    values = read("self_attn.v_proj", kv_heads * head_size, hidden)
    gate = read("mlp.gate_proj", ffn, hidden)
    gate *= 0.5
    up = read("mlp.up_proj", ffn, hidden)
    return LayerWeights(
        qkv=fuse([queries, keys, values], read("input_layernorm", hidden)),
        attention_out=inputs_first(read("self_attn.o_proj", hidden, heads * head_size)),
        gate_up=fuse([gate, up], read("post_attention_layernorm", hidden)),
        down=inputs_first(read("mlp.down_proj", hidden, ffn)),
    )


def rotary_pairs(weight: Hidden, head_size: int) -> Hidden:
    """Put outputs n and n + head_size/2 of each head, which RoPE rotates as one plane, next to one another.

    They then are the two parts of a complex number. Queries and keys change alike, so their products stay as they were.
    """
    outputs, inputs = weight.shape
    halves = weight.reshape(-1, 2, head_size // 2, inputs)
    return halves.swapaxes(1, 2).reshape(outputs, inputs)


def fuse(matrices: list[Hidden], norm: Hidden) -> Hidden:
    """Matrices [outputs, inputs] side by side as one [inputs, outputs], behind an RMSNorm with weights `norm`."""
    return inputs_first(np.concatenate(matrices) * norm)


def inputs_first(weight: Hidden) -> Hidden:
    return np.ascontiguousarray(weight.T)
