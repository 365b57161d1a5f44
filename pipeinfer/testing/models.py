"""Random Llama models as Hugging Face folders: small, quick to write, and as sensitive to mistakes as trained ones."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"


def write_llama(
    folder: Path,
    *,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 96,
    vocab: int = 300,
    seed: int = 0,
    tied: bool = False,
) -> Path:
    """Write config.json, model.safetensors (float32) and tokenizer.json into `folder` and give it back.

    The tokenizer knows single bytes, so `vocab` is 257 or more; token 0 ends a text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(random_tensors(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer(vocab).save(str(folder / "tokenizer.json"))
    return folder


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the model, scaled so that each layer changes its input about as much as it passes on."""
    random = np.random.default_rng(seed)
    hidden: int = config["hidden_size"]
    ffn, vocab = config["intermediate_size"], config["vocab_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]

    def matrix(outputs: int, inputs: int) -> NDArray[np.float32]:
        weights = random.standard_normal((outputs, inputs), np.float32)
        weights /= math.sqrt(inputs)
        return weights

    def norm() -> NDArray[np.float32]:
        return random.uniform(0.5, 1.5, hidden).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": norm()}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}input_layernorm.weight": norm(),
            f"{prefix}self_attn.q_proj.weight": 2 * matrix(hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": 2 * matrix(keys, hidden),
            f"{prefix}self_attn.v_proj.weight": matrix(keys, hidden),
            f"{prefix}self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{prefix}post_attention_layernorm.weight": norm(),
            f"{prefix}mlp.gate_proj.weight": matrix(ffn, hidden),
            f"{prefix}mlp.up_proj.weight": matrix(ffn, hidden),
            f"{prefix}mlp.down_proj.weight": matrix(hidden, ffn),
        }
    return tensors


def byte_tokenizer(vocab: int) -> Tokenizer:
    """One token per byte, after the end of text and before tokens that no text contains."""
    known = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    if vocab < len(known):
        raise ValueError(f"expected a vocabulary of {len(known)} tokens or more, came {vocab}")
    tokens = known + [f"<|unused {number}|>" for number in range(vocab - len(known))]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer
