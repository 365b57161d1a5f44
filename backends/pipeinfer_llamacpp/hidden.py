"""Hidden states into and out of a llama.cpp graph, by the callback that its scheduler has for looking at nodes.

The callback is asked about every node, some 30 a layer. It is compiled from hidden.c where that can be
(native.py), and is a function in Python otherwise, which is the same and slower.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from pipeinfer.engine.backend import Hidden
from pipeinfer_llamacpp.library import ggml, llama
from pipeinfer_llamacpp.native import compiled

NOWHERE = "\n"
"""What no node is called."""

FUNCTIONS = ("ggml_get_name", "ggml_nbytes", "ggml_backend_tensor_get", "ggml_backend_tensor_set")


class Fields(ctypes.Structure):
    """struct hidden of hidden.c."""

    _fields_ = (
        ("entry", ctypes.c_char_p),
        ("exit", ctypes.c_char_p),
        ("entry_rows", ctypes.c_void_p),
        ("exit_rows", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("entered", ctypes.c_size_t),
        ("left", ctypes.c_size_t),
        *((function, ctypes.c_void_p) for function in FUNCTIONS),
    )


class HiddenStates:
    """Writes rows over the node `entry` and copies those of the node `exit`, behind which the graph stops; either may
    be None. `callback` and `address` go into a context as its `cb_eval` and the data that belongs to it."""

    def __init__(self, entry: str | None, exit: str | None, *, native: bool = True) -> None:
        self._fields = Fields(entry=(entry or NOWHERE).encode(), exit=(exit or NOWHERE).encode())
        for function in FUNCTIONS:
            setattr(self._fields, function, ctypes.cast(getattr(ggml(), function), ctypes.c_void_p))
        self.address = ctypes.addressof(self._fields)
        self.callback = (native and compiled_callback()) or callback(self._on_node)

    def expect(self, entering: Hidden | None, leaving: Hidden | None) -> None:
        """A batch comes next whose rows, float32 [R, hidden_size], enter and leave. They live until it is computed."""
        fields = self._fields
        fields.entered = fields.left = 0
        if entering is not None:
            fields.entry_rows, fields.bytes = entering.ctypes.data, entering.nbytes
        if leaving is not None:
            fields.exit_rows, fields.bytes = leaving.ctypes.data, leaving.nbytes

    def check(self) -> None:
        """Raises RuntimeError when the batch was computed without the nodes being met."""
        fields = self._fields
        for name, met in ((fields.entry, fields.entered), (fields.exit, fields.left)):
            if name != NOWHERE.encode() and not met:
                raise RuntimeError(f"expected {fields.bytes} bytes of {name.decode()} from llama.cpp, came none: this"
                                   " version of llama-cpp-python names its tensors in another way")

    def _on_node(self, tensor: int, ask: bool, _: Any) -> bool:
        fields, name = self._fields, ggml().ggml_get_name(tensor)
        is_exit = name == fields.exit
        is_entry = name == fields.entry and not fields.entered
        if ask:
            return is_exit or is_entry
        if ggml().ggml_nbytes(tensor) != fields.bytes:
            return True
        if is_entry:
            ggml().ggml_backend_tensor_set(tensor, fields.entry_rows, 0, fields.bytes)
            fields.entered = fields.bytes
        if is_exit:
            ggml().ggml_backend_tensor_get(tensor, fields.exit_rows, 0, fields.bytes)
            fields.left = fields.bytes
        return not is_exit


class NodeNames:
    """In the place of HiddenStates: notes the names of nodes that have as many bytes as the rows, none twice."""

    address = None

    def __init__(self) -> None:
        self.names: list[str] = []
        self._bytes = 0
        self.callback = callback(self._on_node)

    def expect(self, entering: Hidden | None, leaving: Hidden | None) -> None:
        self._bytes = 0 if entering is None else entering.nbytes

    def check(self) -> None:
        pass

    def _on_node(self, tensor: int, ask: bool, _: Any) -> bool:
        name = ggml().ggml_get_name(tensor).decode(errors="replace")
        if ask and name and ggml().ggml_nbytes(tensor) == self._bytes and name not in self.names:
            self.names.append(name)
        return False


def callback(function: Callable[[int, bool, Any], bool]) -> Any:
    return llama().ggml_backend_sched_eval_callback(function)


def compiled_callback() -> Any:
    """The function of hidden.c; None where it cannot be compiled."""
    library = compiled("hidden")
    return library and ctypes.cast(library.on_node, llama().ggml_backend_sched_eval_callback)
