"""Tensors of a Hugging Face folder, as float32, read one at a time.

The safetensors format is an eight-byte little-endian length, that many bytes of JSON (name to dtype, shape and byte
range) and the raw tensors. It is read here by hand because NumPy has no bfloat16.
"""

import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer.engine.backend import BadModel, Hidden

HEAD = "lm_head.weight"
"""The output matrix. Where it is stored it is the one meant, as in transformers, even if config.json says that it is
the embedding."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STORED_AS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Index(msgspec.Struct):
    """model.safetensors.index.json: which file holds which tensor."""

    weight_map: dict[str, str]


class TensorEntry(msgspec.Struct):
    """Where a tensor lies: bytes [start, stop) of the file's data section."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Checkpoint:
    """The tensors of one model folder, in one safetensors file or in several with an index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, SafetensorsFile] = {}

    def tensor(self, name: str, *shape: int) -> Hidden:
        """The tensor `name`, float32 [*shape]. Raises BadModel when it is missing, of another shape or cut off."""
        if self._weight_map and name not in self._weight_map:
            raise BadModel(f"expected a tensor {name} in {self._folder / INDEX}, came none: give a whole model")
        file_name = self._weight_map.get(name, SINGLE)
        if file_name not in self._files:
            self._files[file_name] = SafetensorsFile(self._folder / file_name)
        return self._files[file_name].tensor(name, shape)

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of that name, in a file that is here or in the index."""
        if self._weight_map:
            return name in self._weight_map
        path = self._folder / SINGLE
        return path.is_file() and SafetensorsFile(path).holds(name)

    def present(self) -> list[Path]:
        """The files with tensors that are here."""
        names = sorted(set(self._weight_map.values())) or [SINGLE]
        return [path for name in names if (path := self._folder / name).is_file()]

    def files(self, names: Iterable[str]) -> set[str]:
        """Names of the files that hold the tensors `names`."""
        return {self._weight_map.get(name, SINGLE) for name in names}

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        path = self._folder / INDEX
        if not path.exists():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=Index).weight_map
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadModel(f"expected an index of tensors in {path}, came {error}: fetch the file again") from None


class SafetensorsFile:
    """One safetensors file. Its header is read and checked against the file's length at once, tensors later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                header_size = int.from_bytes(file.read(8), "little")
                header = file.read(min(header_size, size))
        except OSError as error:
            raise BadModel(f"expected weights in {path}, came {error.strerror}: download the safetensors") from None
        self._data_start = 8 + header_size
        self._entries = self._parse(header)
        end = self._data_start + max((entry.data_offsets[1] for entry in self._entries.values()), default=0)
        if size < end:
            raise BadModel(f"expected {end} bytes in {path}, came {size}: the file is cut off, download it again")

    def _parse(self, header: bytes) -> dict[str, TensorEntry]:
        try:
            fields = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
            fields.pop("__metadata__", None)
            return {name: msgspec.json.decode(raw, type=TensorEntry) for name, raw in fields.items()}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadModel(f"expected a safetensors header in {self._path}, came {error}: download it again") from None

    def holds(self, name: str) -> bool:
        return name in self._entries

    def tensor(self, name: str, shape: tuple[int, ...]) -> Hidden:
        entry = self._entries.get(name)
        if entry is None:
            raise BadModel(f"expected a tensor {name} in {self._path}, came none: give a whole model")
        if tuple(entry.shape) != shape:
            raise BadModel(f"expected {name} of shape {list(shape)} in {self._path}, came {entry.shape}:"
                           " config.json and the weights are of different models")
        if entry.dtype not in STORED_AS:
            raise BadModel(f"expected {name} as one of {', '.join(STORED_AS)} in {self._path}, came {entry.dtype}:"
                           " save the model unquantised")
        return widen(self._read(name, entry))

    def _read(self, name: str, entry: TensorEntry) -> NDArray[Any]:
        start, stop = entry.data_offsets
        dtype = np.dtype(STORED_AS[entry.dtype])
        count = math.prod(entry.shape)
        if start < 0 or stop - start != count * dtype.itemsize:
            raise BadModel(f"expected {count * dtype.itemsize} bytes for {name} in {self._path}, came the range"
                           f" [{start}, {stop}): download it again")
        data = np.fromfile(self._path, dtype, count, offset=self._data_start + start)
        return data.reshape(entry.shape)


def widen(stored: NDArray[Any]) -> Hidden:
    """float32 from what was stored: bfloat16 is the upper half of a float32."""
    if stored.dtype == np.uint16:
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return stored.astype(np.float32, copy=False)
