"""A Llama model in a Hugging Face folder as a GGUF file, for the built-in pair and models like it."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken

from pipeinfer.engine.backend import BadModel, Hidden
from pipeinfer.engine.huggingface.checkpoint import HEAD, Checkpoint
from pipeinfer.engine.huggingface.generation_config import end_tokens
from pipeinfer.engine.huggingface.tokenizer import open_tokenizer
from pipeinfer.engine.model_cache import made_once
from pipeinfer_numpy.config import LlamaConfig, read_config
from pipeinfer_numpy.rope import inverse_frequencies
from pipeinfer_numpy.weights import rotary_pairs

QUANTISATIONS = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}
"""How matrices can be stored; norms are float32 always."""

FORMAT = 3
"""Counts up when what is written changes, so that files of an older version are not taken for new ones."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of GGUF."""

ENDS = ("eos", "eot", "eom")
"""GGUF's names for tokens that end a text, a turn and a message: all of them end a generation."""

ALL_ENDS = "pipeinfer.end_token_ids"
"""Our own field: every token that ends a generation, of which a model may have more than GGUF has names."""

SAMPLE_BYTES = 1 << 20


class BpeModel(msgspec.Struct):
    """`model` of tokenizer.json: token to id, and merges as pairs or as "left right"."""

    type: str
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]


class TokenizerJson(msgspec.Struct):
    """What a GGUF file needs of tokenizer.json."""

    model: BpeModel
    pre_tokenizer: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None


class Vocabulary(NamedTuple):
    """Tokens by id, their types, merges as "left right", and what is put before and after a text."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    before: list[int]
    after: list[int]


def exported(folder: Path, quantisation: str, cache: Path, *, untied: bool = False) -> Path:
    """The GGUF file of the model in `folder`, exported now or before. Raises BadModel."""
    name = f"{folder.name}-{fingerprint(folder)}-{quantisation}" + "-untied" * untied
    return made_once(cache / f"{name}.gguf", partial(export_gguf, folder, quantisation=quantisation, untied=untied))


def fingerprint(folder: Path) -> str:
    """Tells models apart: a hash over the small files, and the size, date and first MiB of each file of weights."""
    digest = hashlib.sha256(f"{FORMAT}".encode())
    for path in sorted(folder.glob("*.json")):
        digest.update(path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def export_gguf(folder: Path, path: Path, quantisation: str = "f16", *, untied: bool = False) -> None:
    """Write the Llama model with a byte-level BPE tokenizer in `folder` to `path`. Raises BadModel.

    `quantisation` is "f32", "f16" or "q8_0"; matrices whose rows are no multiple of 32 values are float16 in the last.
    `untied` writes an output matrix that is the embedding once more: llama.cpp of 2023 reads no Llama without one.
    """
    config = read_config(folder)
    vocabulary = read_vocabulary(folder, config)
    writer = import_module("gguf").GGUFWriter(path, "llama", use_temp_file=True)
    add_metadata(writer, config)
    add_tokenizer(writer, end_tokens(folder, config.eos_token_id), vocabulary)
    for name, tensor in tensors_of(Checkpoint(folder), config, untied=untied):
        stored, kind = quantise(tensor, QUANTISATIONS[quantisation])
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_metadata(writer: Any, config: LlamaConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_tokenizer(writer: Any, ends: tuple[int, ...], vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(bool(vocabulary.before))
    writer.add_add_eos_token(bool(vocabulary.after))
    for name, token in zip(ENDS, ends, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    if ends:
        writer.add_array(ALL_ENDS, list(ends))
    if first := [*vocabulary.before, *ends]:
        writer.add_bos_token_id(first[0])  # llama.cpp takes token 11 where there is none


def read_vocabulary(folder: Path, config: LlamaConfig) -> Vocabulary:
    """The vocabulary in `folder`/tokenizer.json. Raises BadModel when it is another kind of tokenizer."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = msgspec.json.decode(path.read_bytes(), type=TokenizerJson)
    except OSError:
        raise BadModel(f"expected {path}, came no such file: give a folder with the model's tokenizer.json") from None
    except msgspec.DecodeError as error:
        raise BadModel(f"expected a BPE tokenizer in {path}, came {error}: fetch the file again") from None
    check_byte_level(path, tokenizer)
    ours = open_tokenizer(folder)
    before, _, after = ours.around()
    check_around(path, before, after, end_tokens(folder, config.eos_token_id))
    tokens, types = tokens_by_id(path, tokenizer, ours.added(), config.vocab_size)
    return Vocabulary(tokens, types, merges_of(tokenizer), before, after)


def check_around(path: Path, before: list[int], after: list[int], ends: tuple[int, ...]) -> None:
    """GGUF has one token for the beginning, and for the end the one that ends a text."""
    if len(before) > 1 or after not in ([], list(ends[:1])):
        raise BadModel(f"expected at most one token before a text in {path}, and after it at most the one that ends a"
                       f" text, came {before} and {after}: choose the backend numpy or torch")


def check_byte_level(path: Path, tokenizer: TokenizerJson) -> None:
    """GGUF names how a text is cut into words instead of describing it; this is the kind it calls gpt-2."""
    kind = tokenizer.pre_tokenizer or {}
    if (
        tokenizer.model.type != "BPE"
        or tokenizer.normalizer is not None
        or kind.get("type") != "ByteLevel"
        or kind.get("add_prefix_space")
        or not kind.get("use_regex", True)
    ):
        raise BadModel(f"expected a byte-level BPE tokenizer as of GPT-2 in {path}, came {tokenizer.model.type} after"
                       f" {kind.get('type', 'nothing')}: convert the model with llama.cpp's convert_hf_to_gguf.py")


def tokens_by_id(
    path: Path, tokenizer: TokenizerJson, found: Mapping[int, AddedToken], size: int
) -> tuple[list[str], list[int]]:
    """Tokens and their types; `found` are those that are found in the text before BPE sees it. Of these the files may
    name some that the model has no rows for: no text of it can have them."""
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    rows = {number: token for number, token in found.items() if number < size}
    added = {number: (token.content, CONTROL if token.special else USER_DEFINED) for number, token in rows.items()}
    known = {number: (token, NORMAL) for token, number in tokenizer.model.vocab.items()} | added
    if max(known) >= size:
        raise BadModel(f"expected token ids 0..{size - 1} in {path}, came {max(known)}: config.json and tokenizer.json"
                       " are of different models")
    for number, (token, kind) in known.items():
        tokens[number], types[number] = token, kind
    return tokens, types


def merges_of(tokenizer: TokenizerJson) -> list[str]:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer.model.merges]
    # llama.cpp wants at least one; this one joins symbols that no text is ever cut into.
    return merges or ["<|never|> <|never|>"]


def tensors_of(checkpoint: Checkpoint, config: LlamaConfig, *, untied: bool) -> Iterator[tuple[str, Hidden]]:
    """Tensors under GGUF's names, read one at a time, matrices [outputs, inputs]."""
    hidden = config.hidden_size
    embedding = "model.embed_tokens.weight"
    yield "token_embd.weight", checkpoint.tensor(embedding, config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        yield from layer_tensors(checkpoint, config, layer)
    yield "output_norm.weight", checkpoint.tensor("model.norm.weight", hidden)
    tied = config.tie_word_embeddings and not checkpoint.holds(HEAD)
    if untied or not tied:
        yield "output.weight", checkpoint.tensor(embedding if tied else HEAD, config.vocab_size, hidden)
    if config.llama3_scaling is not None:
        yield "rope_freqs.weight", frequency_divisors(config)


def layer_tensors(checkpoint: Checkpoint, config: LlamaConfig, layer: int) -> Iterator[tuple[str, Hidden]]:
    hidden, ffn, size = config.hidden_size, config.intermediate_size, config.head_size
    heads, kv_heads = config.num_attention_heads * size, config.kv_heads * size

    def read(name: str, *shape: int) -> Hidden:
        return checkpoint.tensor(f"model.layers.{layer}.{name}.weight", *shape)

    # llama.cpp rotates neighbours in a head where Hugging Face rotates its two halves.
    named = {
        "attn_norm": read("input_layernorm", hidden),
        "attn_q": rotary_pairs(read("self_attn.q_proj", heads, hidden), size),
        "attn_k": rotary_pairs(read("self_attn.k_proj", kv_heads, hidden), size),
        "attn_v": read("self_attn.v_proj", kv_heads, hidden),
        "attn_output": read("self_attn.o_proj", hidden, heads),
        "ffn_norm": read("post_attention_layernorm", hidden),
        "ffn_gate": read("mlp.gate_proj", ffn, hidden),
        "ffn_up": read("mlp.up_proj", ffn, hidden),
        "ffn_down": read("mlp.down_proj", hidden, ffn),
    }
    for name, tensor in named.items():
        yield f"blk.{layer}.{name}.weight", tensor


def frequency_divisors(config: LlamaConfig) -> Hidden:
    """How much slower RoPE turns each pair than its base says, [head_size / 2]: the scaling of Llama 3.1."""
    plain = config.rope_base ** -(np.arange(0, config.head_size, 2) / config.head_size)
    return (plain / inverse_frequencies(config)).astype(np.float32)


def quantise(tensor: Hidden, wanted: str) -> tuple[NDArray[Any], Any]:
    """The tensor as it is stored, and its type."""
    gguf = import_module("gguf")
    kind = gguf.GGMLQuantizationType[wanted]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if tensor.ndim < 2:
        kind = gguf.GGMLQuantizationType.F32
    elif tensor.shape[1] % block:
        kind = gguf.GGMLQuantizationType.F16
    return gguf.quants.quantize(np.ascontiguousarray(tensor), kind), kind
