"""The tokenizer in a GGUF file, adding no special tokens to a text, and the digest that tells vocabularies apart."""

import ctypes
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pipeinfer_llamacpp.gguf_file import GgufFile
from pipeinfer_llamacpp.library import llama
from pipeinfer_llamacpp.model import LoadedModel

UNUSED = 5
"""The type of tokens that only fill the vocabulary up to a round number."""

PIECE_BYTES = 256
WITH_SPECIAL, WITHOUT_SPECIAL = True, False


class GgufTokenizer:
    """llama.cpp's tokenizer for a model file, of which it reads the vocabulary only. Raises BadModel."""

    def __init__(self, source: GgufFile) -> None:
        self._model = LoadedModel(source.path, vocabulary_only=True)
        self._vocabulary = llama().llama_model_get_vocab(self._model.handle)
        self._piece = lru_cache(maxsize=None)(self._read_piece)
        # SentencePiece vocabularies write a text's words with a space before each, the first included.
        is_sentence_piece = source.value("tokenizer.ggml.model") == "llama"
        self._leading_space = is_sentence_piece and source.value("tokenizer.ggml.add_space_prefix", True)

    def encode(self, text: str) -> list[int]:
        raw = text.encode()
        room = len(raw) + 2
        ids = (ctypes.c_int32 * room)()
        count = llama().llama_tokenize(self._vocabulary, raw, len(raw), ids, room, WITHOUT_SPECIAL, WITH_SPECIAL)
        return ids[:count]

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join(map(self._piece, ids)).decode(errors="replace")
        return text.removeprefix(" ") if self._leading_space else text

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        length = llama().llama_token_to_piece(self._vocabulary, token, buffer, PIECE_BYTES, 0, WITH_SPECIAL)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama().llama_token_to_piece(self._vocabulary, token, buffer, -length, 0, WITH_SPECIAL)
        return buffer.raw[:length]


def vocabulary_digest(source: GgufFile) -> str:
    """Short SHA-256 over the sorted (token, id) pairs: equal exactly when ids mean the same tokens.

    It is the digest that the NumPy backend gives for the same model's tokenizer.json, which has no unused tokens.
    """
    tokens = source.required("tokenizer.ggml.tokens")
    types = source.value("tokenizer.ggml.token_type", [0] * len(tokens))
    entries: list[Any] = sorted((tokens[id], id) for id in range(len(tokens)) if types[id] != UNUSED)
    return hashlib.sha256(json.dumps(entries, ensure_ascii=True).encode()).hexdigest()[:16]
