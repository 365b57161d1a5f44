"""The native library, loaded when first needed: llama.cpp through llama-cpp-python, and the ggml beneath it."""

import atexit
import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeinfer.errors import one_line
from pipeinfer_llamacpp.abort_guard import before_abort

WARNING_LEVEL, ERROR_LEVEL = 3, 4
MOST_WARNINGS = 64
F32, F16 = 0, 1
"""ggml's numbers of the plain types."""

_kept_alive: list[Any] = []
"""Callbacks that the native library holds pointers to."""


class Said(threading.local):
    """What llama.cpp has logged on this thread: ranks may be threads, and each asks after its own model."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.taken: list[list[str]] = []
        """Lists that take every line at present, of whatever level."""


_said = Said()


@cache
def llama() -> ModuleType:
    """llama.cpp's C functions, initialised, its log silenced but for `first_error` and `warnings`.

    When it aborts, its own words shall be the last: it would let a debugger write pages behind them.
    """
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # for a build that is too old for the callback
    api = import_module("llama_cpp.llama_cpp")
    atexit.register(close_null_files)
    # By llama.cpp's own handle: the file that `ggml` opens may be another copy, with a callback of its own.
    if hasattr(api._lib, "ggml_set_abort_callback"):
        api._lib.ggml_set_abort_callback(before_abort)
    listener = api.llama_log_callback(listen)
    _kept_alive.append(listener)
    api.llama_log_set(listener, None)
    api.llama_backend_init()
    return api


def close_null_files() -> None:
    """Of llama-cpp-python, which opens the null device when it is imported and leaves it to the end of the process."""
    for name in ("outnull_file", "errnull_file"):
        file = getattr(import_module("llama_cpp._utils"), name, None)
        if file is not None:
            file.close()


def listen(level: int, text: bytes, _: object) -> None:
    """Keep errors and warnings, a line each; llama.cpp logs a page for every model."""
    for lines in _said.taken:
        lines.append(text.decode(errors="replace"))
    if level == WARNING_LEVEL and len(_said.warnings) < MOST_WARNINGS:
        _said.warnings.append(one_line(text.decode(errors="replace")))
    if level >= ERROR_LEVEL and text.strip(b".\n "):
        _said.errors.append(one_line(text.decode(errors="replace")))


def forget_errors() -> None:
    """To be called before what `first_error` or `warnings` is asked about."""
    _said.errors.clear()
    _said.warnings.clear()


def first_error() -> str:
    """The first error that llama.cpp has logged on this thread, in one line: later ones say where it was noticed."""
    return _said.errors[0] if _said.errors else "nothing more"


def warnings() -> list[str]:
    """What llama.cpp has warned of, without the name of its function, frames of asterisks and repetitions."""
    said = [re.sub(r"^\w+:\s*", "", line) for line in _said.warnings]
    return list(dict.fromkeys(line for line in said if re.search(r"\w", line)))


@contextmanager
def everything_said() -> Iterator[list[str]]:
    """The lines that llama.cpp logs on this thread meanwhile, of all levels."""
    lines: list[str] = []
    _said.taken.append(lines)
    try:
        yield lines
    finally:
        _said.taken.remove(lines)


@cache
def ggml() -> ctypes.PyDLL:
    """Functions on tensors. They return at once, so the interpreter lock is kept while they run."""
    library = ctypes.PyDLL(str(ggml_path()))
    library.ggml_get_name.restype = ctypes.c_char_p
    library.ggml_get_name.argtypes = [ctypes.c_void_p]
    library.ggml_nbytes.restype = ctypes.c_size_t
    library.ggml_nbytes.argtypes = [ctypes.c_void_p]
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.ggml_backend_tensor_set.restype = None
    library.ggml_backend_tensor_set.argtypes = library.ggml_backend_tensor_get.argtypes
    library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return library


def ggml_path() -> Path:
    package = import_module("llama_cpp").__file__
    assert package is not None
    folder = Path(package).parent / "lib"
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        if (folder / name).exists():
            return folder / name
    raise ImportError(f"expected ggml's library in {folder}, came none: install llama-cpp-python again")


@cache
def native_strlen() -> Any:
    """C's strlen: given a text of one byte it is a native 'bool (*)(void *)' whose answer is "not empty"."""
    return ctypes.CDLL("msvcrt" if os.name == "nt" else None).strlen


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h, as far as it is used here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )
