"""The tokenizer of a Hugging Face folder, as transformers reads it.

tokenizer.json is the truth about how a text is cut and what its post-processor puts around it. tokenizer_config.json
names further tokens (`added_tokens_decoder`, `bos_token` and the like) that are found in texts as well; its
`add_bos_token` and `add_eos_token` say nothing where there is a tokenizer.json, as in transformers 5.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from pipeinfer.engine.backend import BadModel, Token
from pipeinfer.engine.chat import ChatTemplate
from pipeinfer.engine.huggingface.chat_template import chat_template_of
from pipeinfer.engine.special_tokens import Framed, framed
from pipeinfer.errors import one_line

TOKENIZER, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
LISTS = ("additional_special_tokens", "extra_special_tokens")

KEPT = 4
"""Tokenizers that stay in memory: those of a session's models, and of the next one's."""


def open_tokenizer(folder: Path) -> "HfTokenizer":
    """The tokenizer in `folder`, read once while its files stay as they are: a vocabulary of a quarter of a million
    tokens takes two seconds to read, and a session asks for it several times. Raises BadModel."""
    return _opened(folder, tuple([_stamp(folder / name) for name in (TOKENIZER, CONFIG, MAP)]))


@lru_cache(maxsize=KEPT)
def _opened(folder: Path, _stamps: tuple[tuple[int, ...], ...]) -> "HfTokenizer":
    return HfTokenizer(folder)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or put in the place of another; nothing where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class HfTokenizer:
    """Raises BadModel when a file is missing or malformed, or for a kind of tokenizer that loses spaces."""

    def __init__(self, folder: Path) -> None:
        path = folder / TOKENIZER
        if not path.is_file():
            raise BadModel(f"expected {path}, came no such file: give a folder with the model's tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadModel(f"expected a tokenizer in {path}, came {one_line(error)}: fetch the file again") from None
        kind = type(self._tokenizer.model).__name__
        if kind == "WordPiece":
            raise BadModel(f"expected BPE or Unigram in {path}, came {kind}, which cannot give a text's spaces back: it"
                           " is of an encoder, choose a model that generates")
        self._folder = folder
        self._settings = read_settings(folder)
        forget_training(self._tokenizer)
        add_named_tokens(self._tokenizer, self._settings)
        self._tokenizer.encode_special_tokens = bool(self._settings.get("split_special_tokens"))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return self._framed(text).ids if add_special else self._ids(text, add_special=False)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def around(self) -> Framed:
        """What is put around a text, one that is short."""
        return self._framed("a")

    def added(self) -> Mapping[int, AddedToken]:
        """The tokens that are found in a text before it is cut, by id."""
        found: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        return found

    def _framed(self, text: str) -> Framed:
        return framed(self._ids(text, add_special=False), self._ids(text, add_special=True))

    def _ids(self, text: str, *, add_special: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def tokens(self) -> Mapping[int, Token]:
        added = self.added()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return {number: Token(text, number in added) for text, number in vocabulary.items()}

    def chat_template(self) -> ChatTemplate | None:
        return chat_template_of(self._folder, self._settings)

    def digest(self) -> str:
        """Short SHA-256 over the sorted (token, id) pairs: equal exactly when ids mean the same tokens."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        entries = sorted(self._tokenizer.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(entries, ensure_ascii=True).encode()).hexdigest()[:16]


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json, each of which may be absent. Raises BadModel."""
    settings: dict[str, Any] = {}
    for name in (MAP, CONFIG):
        path = folder / name
        try:
            settings |= msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            continue
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadModel(f"expected a tokenizer's settings in {path}, came {error}: fetch the file again") from None
    return settings


def forget_training(tokenizer: Tokenizer) -> None:
    """Settings that were left active when the file was saved: they would cut texts, fill them up or vary them."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None


def add_named_tokens(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Have the tokenizer find the tokens that the settings name; what they say of one goes before tokenizer.json."""
    listed = settings.get("added_tokens_decoder") or {}
    described = [as_added(token) for _, token in sorted(listed.items(), key=lambda item: int(item[0]))]
    tokenizer.add_tokens([token for token in described if token is not None])
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([token for token in named_tokens(settings) if token.content not in known])


def named_tokens(settings: Mapping[str, Any]) -> Iterator[AddedToken]:
    """`bos_token`, `eos_token` and the like, and the further special ones."""
    values = [value for name, value in settings.items() if name.endswith("_token")]
    for name in LISTS:
        further = settings.get(name) or []
        values += further.values() if isinstance(further, dict) else further
    for value in values:
        token = as_added(value)
        if token is not None:
            yield token


def as_added(value: object) -> AddedToken | None:
    """A token as the settings write it, as a text or with its properties; None for what is none, like a flag."""
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{name: bool(value[name]) for name in names if name in value})
