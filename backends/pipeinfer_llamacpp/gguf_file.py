"""The header of a GGUF file: its metadata, and where each tensor lies.

The format is a magic, counts, metadata fields (key, type, value), tensor infos (name, dimensions, type, offset) and the
tensors themselves, aligned. This is a walk that notes where each value starts and stops and decodes what is asked for:
with a vocabulary of 150,000 tokens it takes a tenth of a second, where `gguf.GGUFReader`, which builds arrays for every
string, takes tens; and the bytes of a field can be copied into another file as they are.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import re
import struct
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pipeinfer.engine.backend import BadModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", 5: "i", FLOAT32: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
"""struct codes of the value types that are numbers or booleans."""

SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""How the files of a model in several are called: what they have in common, a number from 1 on, how many they are."""


class Field(NamedTuple):
    """A metadata value of type `kind` in bytes [start, stop) of the file."""

    kind: int
    start: int
    stop: int


class Tensor(NamedTuple):
    """Dimensions with the row length first, ggml's type number, and bytes [start, stop) of the file number `shard`."""

    shape: tuple[int, ...]
    type: int
    start: int
    stop: int
    shard: int = 0


class OneFile:
    """The header of one file. Raises BadModel when it is missing, no GGUF file or cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = map_file(path)
        self.fields: dict[str, Field] = {}
        self.tensors: dict[str, Tensor] = {}
        try:
            self._read_header()
        except (struct.error, OverflowError) as error:
            raise BadModel(f"expected a GGUF header in {path}, came {error}: the file is cut off or damaged, download"
                           " it again") from None

    def value(self, key: str, default: Any = None) -> Any:
        """The decoded value of a field: a number, a string or a list."""
        field = self.fields.get(key)
        return default if field is None else Walk(self.data, field.start).value(field.kind)

    def _read_header(self) -> None:
        if self.data[:4] != MAGIC:
            raise BadModel(f"expected a GGUF file at {self.path}, came one that starts with {self.data[:4]!r}: give the"
                           " .gguf file of a model")
        walk = Walk(self.data, 4)
        version = walk.number("I")
        if version not in VERSIONS:
            raise BadModel(f"expected GGUF version 2 or 3 (little-endian) in {self.path}, came {version}: convert the"
                           " model again")
        tensors, fields = walk.number("Q"), walk.number("Q")
        for _ in range(fields):
            key, kind = walk.string(), walk.number("I")
            start = walk.at
            walk.skip(kind)
            self.fields[key] = Field(kind, start, walk.at)
        self._read_tensors(walk, tensors)

    def _read_tensors(self, walk: "Walk", count: int) -> None:
        infos = [walk.tensor() for _ in range(count)]
        alignment = self.value("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise BadModel(f"expected general.alignment of 1 or more in {self.path}, came {alignment!r}: the file is"
                           " damaged, download it again")
        self._data_start = -(-walk.at // alignment) * alignment
        if self._data_start > len(self.data) or not (infos or self.value("split.count", 1) != 1):
            raise BadModel(f"expected tensors in {self.path}, came none: the file is cut off or holds only a"
                           " vocabulary")
        for name, shape, kind, offset in infos:
            start = self._data_start + offset
            self.tensors[name] = Tensor(shape, kind, start, start + tensor_bytes(self.path, name, shape, kind))
        end = max((tensor.stop for tensor in self.tensors.values()), default=0)
        if len(self.data) < end:
            raise BadModel(f"expected {end} bytes in {self.path}, came {len(self.data)}: the file is cut off, download"
                           " it again")


class GgufFile(OneFile):
    """An opened model, with its other files where it has several. Raises BadModel."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.shards: list[OneFile] = [self]
        self._open_shards()

    @cached_property
    def architecture(self) -> str:
        return str(self.required("general.architecture"))

    def required(self, key: str) -> Any:
        """Like `value`. Raises BadModel when there is no such field."""
        if key not in self.fields:
            raise BadModel(f"expected a field {key} in {self.path}, came none: give a GGUF file of a language model")
        return self.value(key)

    def length(self, key: str) -> int:
        """How many entries an array has, none of which is decoded. Raises BadModel when there is no such array."""
        field = self.fields.get(key)
        if field is None or field.kind != ARRAY:
            raise BadModel(f"expected an array {key} in {self.path}, came none: give a GGUF file of a language model")
        walk = Walk(self.data, field.start)
        walk.number("I")
        return int(walk.number("Q"))

    def of_architecture(self, key: str) -> Any:
        """The field `key` under the architecture's own prefix. Raises BadModel when there is none."""
        return self.required(f"{self.architecture}.{key}")

    def count(self, key: str) -> int:
        """A whole number from 1 on under the architecture's own prefix. Raises BadModel."""
        came = self.of_architecture(key)
        if not isinstance(came, int) or came < 1:
            raise BadModel(f"expected {self.architecture}.{key} of 1 or more in {self.path}, came {came!r}: convert the"
                           " model again")
        return came

    @property
    def header(self) -> memoryview:
        """Everything before the tensors."""
        return memoryview(self.data)[: self._data_start]

    def raw(self, field: Field) -> bytes:
        """A field's type and value as they are in the file."""
        return struct.pack("<I", field.kind) + self.data[field.start : field.stop]

    def bytes_of(self, tensor: Tensor) -> memoryview:
        """A tensor as it is stored."""
        return memoryview(self.shards[tensor.shard].data)[tensor.start : tensor.stop]

    def _open_shards(self) -> None:
        """The tensors of the other files, each of which has a header of its own."""
        count = self.value("split.count", 1)
        if not isinstance(count, int) or count <= 1:
            return
        named = SHARD_NAME.fullmatch(self.path.name)
        if named is None or self.value("split.no", 0) != 0 or (int(named[2]), int(named[3])) != (1, count):
            raise BadModel(f"expected the first of {count} files of a model, named ...-00001-of-{count:05}.gguf, came"
                           f" {self.path}: give that one, under its own name")
        for number in range(1, count):
            path = self.path.with_name(f"{named[1]}-{number + 1:05}-of-{count:05}.gguf")
            shard = OneFile(path)
            self.shards.append(shard)
            self.tensors |= {name: tensor._replace(shard=number) for name, tensor in shard.tensors.items()}


def opened(path: Path) -> GgufFile:
    """The file, its header read now or before: a large vocabulary's takes a tenth of a second. Raises BadModel."""
    try:
        status = path.stat()
    except OSError:
        return GgufFile(path)  # which says what is wrong
    return _opened(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, _size: int, _changed: int) -> GgufFile:
    return GgufFile(path)


class Walk:
    """A position in a file that moves on as values are read. Raises struct.error at the end of the file."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self.at = at

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        """Text; bytes that are no UTF-8, as some tokens are, stand for themselves: \\xff."""
        length = self.number("Q")
        start = self.at
        self._move(length)
        return self._data[start : self.at].decode(errors="backslashreplace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(code_of(kind))
        element, count = self.number("I"), self.number("Q")
        if element == STRING:
            return self._strings(count)
        return list(struct.unpack_from(f"<{count}{code_of(element)}", self._data, self.at))

    def _strings(self, count: int) -> list[str]:
        """So many like `string`: hundreds of thousands of tokens and merges."""
        unpack, data, at, found = struct.Struct("<Q").unpack_from, self._data, self.at, []
        for _ in range(count):
            start = at + 8
            at = start + unpack(data, at)[0]
            found.append(data[start:at].decode(errors="backslashreplace"))
        self.at = at
        self._move(0)
        return found

    def skip(self, kind: int) -> None:
        if kind == STRING:
            self._skip_strings(1)
        elif kind != ARRAY:
            self._move(struct.calcsize(f"<{code_of(kind)}"))
        else:
            element, count = self.number("I"), self.number("Q")
            if element == STRING:
                self._skip_strings(count)
            else:
                self._move(count * struct.calcsize(f"<{code_of(element)}"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, dimensions, type and offset behind the header."""
        name, dimensions = self.string(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape, self.number("I"), self.number("Q")

    def _skip_strings(self, count: int) -> None:
        unpack, data, at = struct.Struct("<Q").unpack_from, self._data, self.at
        for _ in range(count):  # hundreds of thousands of tokens and merges
            at += 8 + unpack(data, at)[0]
        self.at = at
        self._move(0)

    def _move(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise struct.error(f"a value that ends at byte {self.at} of {len(self._data)}")


def code_of(kind: int) -> str:
    if kind not in SCALARS:
        raise struct.error(f"a value of unknown type {kind}")
    return SCALARS[kind]


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, read when touched. Raises BadModel."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadModel(f"expected a GGUF file at {path}, came {error.strerror}: give the path of a .gguf"
                       " file") from None
    except ValueError:
        raise BadModel(f"expected a GGUF file at {path}, came an empty one: download it again") from None


def row_bytes(path: Path, name: str, length: int, kind: int) -> int:
    """Bytes of a row of `length` values in ggml's type `kind`. Raises BadModel for a type that there is not."""
    constants = import_module("gguf.constants")
    try:
        block, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise BadModel(f"expected {name} in {path} of a type that the gguf package knows, came type {kind}: update the"
                       " package gguf") from None
    return int(length // block * size)


def type_name(kind: int) -> str:
    """ggml's name of a type that the gguf package knows: "q8_0"."""
    return str(import_module("gguf.constants").GGMLQuantizationType(kind).name).lower()


def tensor_bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    rows = 1
    for dimension in shape[1:]:
        rows *= dimension
    return rows * row_bytes(path, name, shape[0], kind)
