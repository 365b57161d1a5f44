"""The tokenizer in a GGUF file, as llama.cpp itself has it, and the digest that tells vocabularies apart."""

import ctypes
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from pipeinfer.engine.backend import BadModel, Token
from pipeinfer.engine.chat import ChatTemplate
from pipeinfer.engine.special_tokens import framed
from pipeinfer_llamacpp.gguf_file import GgufFile, opened
from pipeinfer_llamacpp.library import llama, warnings
from pipeinfer_llamacpp.model import LoadedModel

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
"""Types of tokens; unused ones only fill the vocabulary up to a round number."""

ADDED = (UNKNOWN, CONTROL, USER_DEFINED)

WORDPIECE = "bert"
CHAT_TEMPLATE = "tokenizer.chat_template"
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator",
         "pad_token": "padding", "cls_token": "cls", "mask_token": "mask"}
"""Special tokens as templates name them, and as GGUF does."""

PIECE_BYTES = 256
SPARE = 8
"""More ids than bytes: those that are put around a text."""

WITH_SPECIAL, WITHOUT_SPECIAL = True, False


class GgufTokenizer:
    """llama.cpp's tokenizer for a model file, of which it reads the vocabulary only. Raises BadModel."""

    def __init__(self, source: GgufFile) -> None:
        if source.value("tokenizer.ggml.model") == WORDPIECE:
            raise BadModel(f"expected BPE or Unigram in {source.path}, came WordPiece, which cannot give a text's"
                           " spaces back: it is of an encoder, choose a model that generates")
        self._source = source
        self._model = LoadedModel(source.path, vocabulary_only=True)
        self.warnings = tuple(warnings())
        """What llama.cpp finds wrong with the vocabulary."""
        self._vocabulary = llama().llama_model_get_vocab(self._model.handle)
        self._piece = lru_cache(maxsize=None)(self._read_piece)
        # SentencePiece vocabularies write a text's words with a space before each, the first included.
        is_sentence_piece = source.value("tokenizer.ggml.model") == "llama"
        self._leading_space = is_sentence_piece and source.value("tokenizer.ggml.add_space_prefix", True)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        plain = self._tokenize(text, WITHOUT_SPECIAL)
        return framed(plain, self._tokenize(text, WITH_SPECIAL)).ids if add_special else plain

    def _tokenize(self, text: str, add_special: bool) -> list[int]:
        raw = text.encode()
        room = len(raw) + SPARE
        ids = (ctypes.c_int32 * room)()
        count = llama().llama_tokenize(self._vocabulary, raw, len(raw), ids, room, add_special, WITH_SPECIAL)
        if count < 0:  # it says how many there are
            room = -count
            ids = (ctypes.c_int32 * room)()
            count = llama().llama_tokenize(self._vocabulary, raw, len(raw), ids, room, add_special, WITH_SPECIAL)
        return ids[:count]

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join(map(self._piece, ids)).decode(errors="replace")
        return text.removeprefix(" ") if self._leading_space else text

    def tokens(self) -> Mapping[int, Token]:
        return {number: Token(text, kind in ADDED) for number, (text, kind) in entries(self._source).items()}

    def chat_template(self) -> ChatTemplate | None:
        source = self._source.value(CHAT_TEMPLATE)
        named = {name: self._source.value(f"tokenizer.ggml.{key}_token_id") for name, key in NAMED.items()}
        texts = self._source.required("tokenizer.ggml.tokens")
        special = {name: texts[number] for name, number in named.items() if number is not None and number < len(texts)}
        return ChatTemplate(source, special) if isinstance(source, str) else None

    def ends(self) -> tuple[int, ...]:
        """The ids that llama.cpp itself takes for the end of a generation."""
        api = llama()
        count = api.llama_vocab_n_tokens(self._vocabulary)
        return tuple(token for token in range(count) if api.llama_vocab_is_eog(self._vocabulary, token))

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        length = llama().llama_token_to_piece(self._vocabulary, token, buffer, PIECE_BYTES, 0, WITH_SPECIAL)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama().llama_token_to_piece(self._vocabulary, token, buffer, -length, 0, WITH_SPECIAL)
        return buffer.raw[:length]


def tokenizer_of(source: GgufFile) -> GgufTokenizer:
    """The file's tokenizer, read now or before: a large vocabulary takes half a second. Raises BadModel."""
    status = source.path.stat()
    return _opened(source.path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, _size: int, _changed: int) -> GgufTokenizer:
    return GgufTokenizer(opened(path))


def vocabulary_digest(source: GgufFile) -> str:
    """Short SHA-256 over the sorted (token, id) pairs: equal exactly when ids mean the same tokens.

    It is the digest that the NumPy backend gives for the same model's tokenizer.json, which has no unused tokens.
    """
    pairs: list[Any] = [(text, number) for number, (text, _) in entries(source).items()]  # by number
    pairs.sort(key=itemgetter(0))
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode()).hexdigest()[:16]


def entries(source: GgufFile) -> dict[int, tuple[str, int]]:
    """Each token that is in use, as the file writes it, and its type, by id."""
    tokens = source.required("tokenizer.ggml.tokens")
    types = source.value("tokenizer.ggml.token_type", [0] * len(tokens))
    return {number: (tokens[number], types[number]) for number in range(len(tokens)) if types[number] != UNUSED}
