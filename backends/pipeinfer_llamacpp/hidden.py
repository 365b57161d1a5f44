"""Hidden states out of llama.cpp: the output of the last layer, copied when the graph has computed it."""

from typing import Any

import numpy as np

from pipeinfer.engine.backend import Hidden
from pipeinfer_llamacpp.library import ggml, llama

UNKNOWN = 0


class HiddenOutput:
    """Collects the tensor `name` of each part of a batch; `callback` goes into a context as its `cb_eval`.

    The callback is asked about every node, some 30 per layer, so it compares addresses: that of the tensor is the same
    in every graph as long as llama.cpp builds all of them alike. Should it ever not be, the tensor found there has
    another name, or nothing was found at its end; then the name is looked for again.
    """

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._tensor = UNKNOWN
        self._rows = np.empty((0, 0), np.float32)
        self._address = self._filled = 0
        self.callback = llama().ggml_backend_sched_eval_callback(self._on_node)

    def expect(self, rows: int, hidden_size: int) -> None:
        """A batch of `rows` comes next."""
        self._rows = np.empty((rows, hidden_size), np.float32)
        self._address = self._rows.ctypes.data
        self._filled = 0

    def missed(self) -> bool:
        """The batch is computed but its hidden states were not found at the known address, which is forgotten now."""
        if self._filled == self._rows.nbytes or self._tensor == UNKNOWN:
            return False
        self._tensor = UNKNOWN
        return True

    def result(self) -> Hidden:
        """float32 [rows, hidden_size] of the batch. Raises RuntimeError when llama.cpp computed no such tensor."""
        if self._filled != self._rows.nbytes:
            raise RuntimeError(f"expected {self._rows.nbytes} bytes of {self._name.decode()} from llama.cpp, came"
                               f" {self._filled}: this version of llama-cpp-python names its tensors in another way")
        return self._rows

    def _on_node(self, tensor: int, ask: bool, _: Any) -> bool:
        """Asked before each node: is it wanted; and again when a wanted one is computed: shall the graph go on."""
        if ask:
            return tensor == self._tensor if self._tensor else self._is_named(tensor)
        if not self._is_named(tensor):
            self._tensor = UNKNOWN
            return True
        self._tensor = tensor
        self._copy(tensor)
        return False  # what follows is the norm and the output matrix, which are another stage's

    def _is_named(self, tensor: int) -> bool:
        return bool(ggml().ggml_get_name(tensor) == self._name)

    def _copy(self, tensor: int) -> None:
        size = ggml().ggml_nbytes(tensor)
        if self._filled + size <= self._rows.nbytes:
            ggml().ggml_backend_tensor_get(tensor, self._address + self._filled, 0, size)
        self._filled += size
