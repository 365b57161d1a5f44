"""Small tokenizers of the kinds that models have, trained here, as Hugging Face folders and as GGUF vocabularies."""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SIZE = 600
SOURCE = Path(argparse.__file__).read_text("utf-8")[:40_000].splitlines()
CORPUS = [*SOURCE, "Größe, naïve café — “quoted” 日本語 😀"] * 2
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
SPLIT = CONTRACTIONS + r"\s*[\r\n]+|\s+(?!\S)|\s+"
"""How tokenizers of the kind of tiktoken cut a text into words: digits by threes, line breaks with what they end."""


HEADERS = ("start_header_id", "end_header_id")


class Gguf(NamedTuple):
    """What a GGUF file says of such a tokenizer, beside its tokens."""

    model: str
    pre: str
    add_bos: bool
    add_eos: bool = False
    space_prefix: bool = False


class Family(NamedTuple):
    """`before` and `after` are the tokens that are put around each text."""

    make: Callable[[], Tokenizer]
    gguf: Gguf | None
    bos: str
    eos: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def byte_level() -> Tokenizer:
    """GPT-2's: bytes as letters, nothing put around."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    train_bytes(tokenizer, ["<|endoftext|>"])
    return tokenizer


def like_tiktoken() -> Tokenizer:
    """Llama 3's: words that are in the vocabulary are never cut, whatever the merges say."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    train_bytes(tokenizer, [f"<|{name}|>" for name in ("begin_of_text", "end_of_text", *HEADERS, "eot_id")])
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template(tokenizer, before="<|begin_of_text|>")]
    )
    return tokenizer


def train_bytes(tokenizer: Tokenizer, special: list[str]) -> None:
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def sentencepiece_bpe(special: list[str], *, prefix: bool) -> Tokenizer:
    """Pieces of words with the space before them, bytes for what no piece has."""
    learning = Tokenizer(models.BPE())
    learning.normalizer = normalizers.Replace(" ", "▁")
    learning.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    learning.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=SIZE - 300, show_progress=False))
    pieces = sorted(learning.get_vocab(), key=learning.get_vocab().__getitem__)
    pieces += [piece for piece in ("▁", "▁▁") if piece not in pieces]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [pair for piece in pieces for pair in halves(piece, vocabulary)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    tokenizer.add_special_tokens(special)
    return tokenizer


def halves(piece: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """All ways in which a piece may be made of two others."""
    pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
    return [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]


def like_llama2() -> Tokenizer:
    tokenizer = sentencepiece_bpe(["<unk>", "<s>", "</s>"], prefix=True)
    tokenizer.post_processor = template(tokenizer, before="<s>")
    return tokenizer


def like_gemma() -> Tokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = sentencepiece_bpe(special, prefix=False)
    tokenizer.post_processor = template(tokenizer, before="<bos>")
    return tokenizer


def unigram() -> Tokenizer:
    """T5's kind: the likeliest cut of a text, without spaces that say nothing, and a token that ends it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = template(tokenizer, after="</s>")
    return tokenizer


def template(tokenizer: Tokenizer, before: str = "", after: str = "") -> Any:
    return processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (before, after) if token],
    )


FAMILIES = {
    "byte-level BPE": Family(byte_level, Gguf("gpt2", "gpt-2", False), "<|endoftext|>", "<|endoftext|>"),
    "SentencePiece BPE, space before": Family(
        like_llama2, Gguf("llama", "default", True, space_prefix=True), "<s>", "</s>", before=("<s>",)
    ),
    "SentencePiece BPE, no space before": Family(
        like_gemma, Gguf("llama", "default", True), "<bos>", "<eos>", before=("<bos>",)
    ),
    "Unigram": Family(
        unigram, Gguf("t5", "default", False, add_eos=True, space_prefix=True), "<pad>", "</s>", after=("</s>",)
    ),
    "of the kind of tiktoken": Family(
        like_tiktoken, Gguf("gpt2", "llama-bpe", True), "<|begin_of_text|>", "<|end_of_text|>",
        before=("<|begin_of_text|>",),
    ),
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> Tokenizer:
    return FAMILIES[name].make()


def write_folder(folder: Path, name: str, **settings: object) -> Path:
    """tokenizer.json and tokenizer_config.json, and as much of a config.json as transformers wants."""
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[name]
    tokenizer_of(name).save(str(folder / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": family.bos, "eos_token": family.eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(known | settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def write_vocabulary(path: Path, name: str, *, pre: bool = True, chat_template: str | None = None) -> Path:
    """A GGUF file that has the vocabulary and one tensor that nobody reads."""
    import gguf
    import numpy as np

    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    assert family.gguf is not None
    words = tokenizer.get_vocab()
    tokens = sorted(words, key=words.__getitem__)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(family.gguf.model)
    if pre:
        writer.add_tokenizer_pre(family.gguf.pre)
    writer.add_token_list(tokens)
    writer.add_token_types([type_of(token, tokenizer) for token in tokens])
    model = json.loads(tokenizer.to_str())["model"]
    if family.gguf.model == "gpt2":
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    else:
        writer.add_token_scores([score for _, score in model["vocab"]] if family.gguf.model == "t5" else [
            -float(number) for number in range(len(tokens))])  # fmt: skip
    writer.add_bos_token_id(words[family.bos])
    writer.add_eos_token_id(words[family.eos])
    writer.add_add_bos_token(family.gguf.add_bos)
    writer.add_add_eos_token(family.gguf.add_eos)
    writer.add_add_space_prefix(family.gguf.space_prefix)
    writer.add_remove_extra_whitespaces(family.gguf.model == "t5")
    if "<unk>" in words:
        writer.add_unk_token_id(words["<unk>"])
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def type_of(token: str, tokenizer: Tokenizer) -> int:
    normal, unknown, control, byte = 1, 2, 3, 6
    if token == "<unk>":
        return unknown
    if token in special_of(tokenizer):
        return control
    return byte if token.startswith("<0x") else normal


def special_of(tokenizer: Tokenizer) -> Iterable[str]:
    found: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
    return [token.content for token in found.values()]
