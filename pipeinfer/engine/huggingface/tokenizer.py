"""A Hugging Face tokenizer without special tokens, and the digest that tells vocabularies apart."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pipeinfer.engine.backend import BadModel
from pipeinfer.errors import one_line


class HfTokenizer:
    """tokenizer.json of a model folder. Raises BadModel when it is missing or malformed."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadModel(f"expected {path}, came no such file: give a folder with the model's tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadModel(f"expected a tokenizer in {path}, came {one_line(error)}: fetch the file again") from None

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def digest(self) -> str:
        """Short SHA-256 over the sorted (token, id) pairs: equal exactly when ids mean the same tokens."""
        entries = sorted(self._tokenizer.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(entries, ensure_ascii=True).encode()).hexdigest()[:16]
