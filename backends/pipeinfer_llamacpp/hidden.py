"""Hidden states out of llama.cpp: the output of the last layer, copied when the graph has computed it."""

from typing import Any

import numpy as np

from pipeinfer.backend import Hidden
from pipeinfer_llamacpp.library import ggml, llama


class HiddenOutput:
    """Collects the tensor `name` of each part of a batch; `callback` goes into a context as its `cb_eval`."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._rows = np.empty((0, 0), np.float32)
        self._address = self._filled = 0
        self._name_of = ggml().ggml_get_name
        self.callback = llama().ggml_backend_sched_eval_callback(self._on_node)

    def expect(self, rows: int, hidden_size: int) -> None:
        """A batch of `rows` comes next."""
        self._rows = np.empty((rows, hidden_size), np.float32)
        self._address = self._rows.ctypes.data
        self._filled = 0

    def result(self) -> Hidden:
        """float32 [rows, hidden_size] of the batch. Raises RuntimeError when llama.cpp computed no such tensor."""
        if self._filled != self._rows.nbytes:
            raise RuntimeError(f"expected {self._rows.nbytes} bytes of {self._name.decode()} from llama.cpp, came"
                               f" {self._filled}: this version names its tensors in another way")
        return self._rows

    def _on_node(self, tensor: int, ask: bool, _: Any) -> bool:
        """Asked before each node: is it wanted; and again when a wanted one is computed: shall the graph go on."""
        if ask:
            return bool(self._name_of(tensor) == self._name)
        size = ggml().ggml_nbytes(tensor)
        if self._filled + size <= self._rows.nbytes:
            ggml().ggml_backend_tensor_get(tensor, self._address + self._filled, 0, size)
        self._filled += size
        return False  # what follows is the norm and the output matrix, which are another stage's
