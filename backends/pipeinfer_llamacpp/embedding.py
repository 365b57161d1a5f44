"""The rows of the embedding matrix that a batch needs, read from the file and widened.

Beside the model, because in llama.cpp a model that takes tokens ends in an output matrix of as many rows; so the first
stage of several holds no vocabulary at all. Rows are widened by the function that llama.cpp itself uses, so that they
are the same to the last bit.
"""

from collections.abc import Sequence

import numpy as np

from pipeinfer.engine.backend import BadModel, Hidden
from pipeinfer_llamacpp.cut import EMBEDDING
from pipeinfer_llamacpp.gguf_file import GgufFile
from pipeinfer_llamacpp.library import F32, ggml


class EmbeddingRows:
    """Looks up rows of `token_embd.weight`. Raises BadModel for a type that cannot be widened."""

    def __init__(self, source: GgufFile) -> None:
        tensor = source.tensors[EMBEDDING]
        self._hidden_size, vocabulary = tensor.shape
        self._type = tensor.type
        self._rows = np.frombuffer(source.bytes_of(tensor), np.uint8).reshape(vocabulary, -1)
        self._widen = ggml().ggml_get_type_traits(tensor.type).contents.to_float
        if tensor.type != F32 and not self._widen:
            raise BadModel(f"expected {EMBEDDING} of a type that can be widened in {source.path}, came type"
                           f" {tensor.type}: quantise the model in another way")

    def rows(self, tokens: Sequence[int]) -> Hidden:
        """float32 [R, hidden_size] of R tokens."""
        stored = self._rows[list(tokens)]
        if self._type == F32:
            return stored.view(np.float32)
        widened = np.empty((len(tokens), self._hidden_size), np.float32)
        self._widen(stored.ctypes.data, widened.ctypes.data, widened.size)
        return widened
