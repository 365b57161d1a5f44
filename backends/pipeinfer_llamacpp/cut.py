"""Stage files: layers [i, j) of a GGUF model as a GGUF model of their own, tensors copied byte for byte.

llama.cpp has no way to run some of a model's layers, but runs any model of j - i layers whole. A stage file therefore
holds the blocks i..j-1 under the numbers 0..j-i-1, and says of each by name what llama.cpp would tell by its number.
Every graph begins at an embedding and ends in an output matrix: where a stage needs neither, the file has a stub of 8
tokens, or a hole, in their place. No stage file has a tokenizer.
"""

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pipeinfer_llamacpp.gguf_file import (
    ARRAY,
    BOOL,
    DEFAULT_ALIGNMENT,
    FLOAT32,
    MAGIC,
    STRING,
    UINT32,
    Field,
    GgufFile,
    Tensor,
    Walk,
    code_of,
    row_bytes,
)
from pipeinfer_llamacpp.library import F32

FORMAT = 2
"""Counts up when what is written changes, so that files of an older version are not taken for new ones."""

STUB_TOKENS = 8
NO_VOCABULARY = "no_vocab"
"""llama.cpp's name for a tokenizer that there is not."""

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
BY_TOKEN = (EMBEDDING, OUTPUT, "output.bias")
"""Tensors with one row, or one value, per token."""

BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
SAMPLE_BYTES = 4096
CHUNK_BYTES = 1 << 20

COUNTED_FROM_THE_START = ("leading_dense_block_count", "dense_layer_count")
COUNTED_FROM_THE_END = "nextn_predict_layers"
WINDOWS = "attention.sliding_window_pattern"


def count_layers(source: GgufFile) -> int:
    """Blocks that a text goes through; those behind them, which predict further tokens, are left out."""
    return int(source.count("block_count")) - int(source.value(f"{source.architecture}.{COUNTED_FROM_THE_END}", 0))


def without_vocabulary(source: GgufFile) -> dict[str, int | str]:
    """Metadata in place of the file's with which llama.cpp reads no tokens: a stage has ids alone, and of a large
    vocabulary they take half a second."""
    if EMBEDDING not in source.tensors:
        return {}
    count = source.tensors[EMBEDDING].shape[1]
    return {"tokenizer.ggml.model": NO_VOCABULARY, f"{source.architecture}.vocab_size": count}


def fingerprint(source: GgufFile) -> str:
    """Tells models apart: a hash over the header, the file's size and date, and the first 4 KiB of every tensor.

    A hash of all bytes would read tens of gigabytes whenever a rank starts. Two models differ in their header, their
    size or most of their tensors; the date is for the one that was edited in place, the samples are for archives that
    give every file the same date.
    """
    digest = hashlib.sha256(f"{FORMAT} {version('llama-cpp-python')}".encode())
    for shard in source.shards:
        status = shard.path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    digest.update(source.header)
    for tensor in source.tensors.values():
        digest.update(source.bytes_of(tensor)[:SAMPLE_BYTES])
    return digest.hexdigest()[:16]


class Piece(NamedTuple):
    """A tensor of the stage file: its name and dimensions there, and its bytes [start, stop) in a file of the source.

    A hole has as many bytes that nobody reads: they are zeros, and take no room on a disk.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    stop: int
    shard: int
    hole: bool = False


def write_stage(source: GgufFile, layers: tuple[int, int], path: Path, windowed: Sequence[bool] = ()) -> None:
    """Write the stage file of `layers`; `windowed` says of each of the model's layers whether it sees a window only,
    and is empty where none does. Memory use does not grow with the model."""
    pieces = list(pieces_of(source, layers, is_last=layers[1] == count_layers(source)))
    fields = dict(fields_of(source, layers, windowed))
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(pieces), len(fields)))
        for key, value in fields.items():
            file.write(encoded(key) + value)
        write_infos(file, pieces)
        for piece in pieces:
            pad(file)
            copy(source, file, piece)
        pad(file)
        file.truncate()


def pieces_of(source: GgufFile, layers: tuple[int, int], *, is_last: bool) -> Iterator[Piece]:
    first, stop = layers
    for name, tensor in source.tensors.items():
        match = BLOCK.fullmatch(name)
        if match is not None:
            if first <= int(match[1]) < stop:
                yield Piece(f"blk.{int(match[1]) - first}.{match[2]}", *tensor)
        elif name in BY_TOKEN and not is_last:
            yield stub_of(source, name, tensor)
        elif name == EMBEDDING and OUTPUT in source.tensors:
            # The last stage looks nothing up. As float32 it is left in the file, where other types may be rearranged.
            yield Piece(name, tensor.shape, F32, 0, 4 * tensor.shape[0] * tensor.shape[1], 0, hole=True)
        else:
            yield Piece(name, *tensor)


def stub_of(source: GgufFile, name: str, tensor: Tensor) -> Piece:
    """The rows of the first 8 tokens."""
    row = tensor.shape[:-1]
    per_token = row_bytes(source.path, name, row[0] if row else 1, tensor.type)
    stop = tensor.start + STUB_TOKENS * per_token
    return Piece(name, (*row, STUB_TOKENS), tensor.type, tensor.start, stop, tensor.shard)


def fields_of(source: GgufFile, layers: tuple[int, int], windowed: Sequence[bool]) -> Iterator[tuple[str, bytes]]:
    """Keys with types and values: the source's, for fewer layers, and a vocabulary without words."""
    prefix = f"{source.architecture}."
    changed = {f"{prefix}{key}" for key in ("block_count", "vocab_size", COUNTED_FROM_THE_END)} | {"general.alignment"}
    for key, field in source.fields.items():
        if key in changed or key.startswith(("tokenizer.", "split.")):
            continue
        yield key, sliced(source, field, layers) if is_per_layer(source, key) else source.raw(field)
    first, stop = layers
    is_last = stop == count_layers(source)
    yield f"{prefix}block_count", number(stop - first)
    yield f"{prefix}vocab_size", number(source.tensors[EMBEDDING].shape[1] if is_last else STUB_TOKENS)
    yield "tokenizer.ggml.model", struct.pack("<I", STRING) + encoded(NO_VOCABULARY)
    for key in COUNTED_FROM_THE_START:
        if f"{prefix}{key}" in source.fields:
            yield f"{prefix}{key}", number(min(max(source.value(f"{prefix}{key}") - first, 0), stop - first))
    if windowed:
        flags = [int(flag) for flag in windowed[first:stop]]
        yield f"{prefix}{WINDOWS}", struct.pack(f"<IIQ{len(flags)}?", ARRAY, BOOL, len(flags), *flags)
    for key, value in head_sizes(source).items():
        yield f"{prefix}{key}", number(value)
    if source.architecture == "minicpm" and f"{prefix}residual_scale" not in source.fields:
        scale = np.float32(1.4) / np.sqrt(np.float32(count_layers(source)))  # what llama.cpp takes by default
        yield f"{prefix}residual_scale", struct.pack("<If", FLOAT32, scale)


def head_sizes(source: GgufFile) -> dict[str, int]:
    """What llama.cpp would conclude from the number of heads in the first layer, where layers differ in it."""
    prefix = f"{source.architecture}."
    heads = source.value(f"{prefix}attention.head_count")
    if not isinstance(heads, list) or not heads[0]:
        return {}
    size = source.count("embedding_length") // heads[0]
    key = source.value(f"{prefix}attention.key_length", size)
    sizes = {"attention.key_length": key, "attention.value_length": size, "rope.dimension_count": key}
    return {name: value for name, value in sizes.items() if f"{prefix}{name}" not in source.fields}


def is_per_layer(source: GgufFile, key: str) -> bool:
    """An array with one value per layer. Those of RoPE go by head dimensions."""
    prefix = f"{source.architecture}."
    if source.fields[key].kind != ARRAY or not key.startswith((prefix, "xielu.")) or key.startswith(f"{prefix}rope."):
        return False
    return len(source.value(key)) in (source.count("block_count"), count_layers(source))


def sliced(source: GgufFile, field: Field, layers: tuple[int, int]) -> bytes:
    """Type and value of an array of numbers, for `layers` alone."""
    walk = Walk(source.data, field.start)
    element = walk.number("I")
    values = Walk(source.data, field.start).value(field.kind)[layers[0] : layers[1]]
    return struct.pack(f"<IIQ{len(values)}{code_of(element)}", ARRAY, element, len(values), *values)


def number(value: int) -> bytes:
    """Type and value of a field."""
    return struct.pack("<II", UINT32, value)


def write_infos(file: BinaryIO, pieces: list[Piece]) -> None:
    offset = 0
    for piece in pieces:
        shape = struct.pack(f"<I{len(piece.shape)}Q", len(piece.shape), *piece.shape)
        file.write(encoded(piece.name) + shape + struct.pack("<IQ", piece.type, offset))
        offset = aligned(offset + piece.stop - piece.start)


def copy(source: GgufFile, target: BinaryIO, piece: Piece) -> None:
    size = piece.stop - piece.start
    if piece.hole:
        target.seek(size, 1)
        return
    stored = memoryview(source.shards[piece.shard].data)[piece.start : piece.stop]
    for start in range(0, size, CHUNK_BYTES):
        target.write(stored[start : start + CHUNK_BYTES])


def pad(file: BinaryIO) -> None:
    file.write(bytes(aligned(file.tell()) - file.tell()))


def aligned(offset: int) -> int:
    return -(-offset // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def encoded(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
