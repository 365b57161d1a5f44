"""Stage files: layers [i, j) of a GGUF model as a GGUF model of their own, tensors copied byte for byte.

llama.cpp has no way to run some of a model's layers, but runs any model of j - i layers whole. A stage file therefore
holds the blocks i..j-1 under the numbers 0..j-i-1. Every graph ends in the output matrix: only the last stage keeps it,
the others have a stub of 8 tokens in its place. No stage file has an embedding or a tokenizer.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeinfer.engine.backend import BadModel
from pipeinfer.engine.model_cache import made_once
from pipeinfer_llamacpp.gguf_file import (
    ARRAY,
    DEFAULT_ALIGNMENT,
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

ARCHITECTURES = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "falcon")
"""What can be split. All of a layer's behaviour is in its own tensors and metadata, none in its number; hidden states
enter the first layer as they come (Gemma scales them); llama.cpp names what leaves layer n `l_out-n`."""

FORMAT = 1
"""Counts up when what is written changes, so that files of an older version are not taken for new ones."""

STUB_TOKENS = 8
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
BY_TOKEN = (EMBEDDING, OUTPUT, "output.bias")
"""Tensors with one row, or one value, per token."""

NEVER_TIED = ("qwen2moe",)
"""Architectures whose output matrix llama.cpp wants under its own name."""

BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
SAMPLE_BYTES = 4096
CHUNK_BYTES = 1 << 20


def cut_stage(source: GgufFile, layers: tuple[int, int], folder: Path) -> Path:
    """The stage file of `layers`, cut now or before. Raises BadModel."""
    check_splittable(source)
    first, stop = layers
    name = f"{source.path.stem}-{fingerprint(source)}-{first}-{stop}.gguf"
    return made_once(folder / name, lambda path: write_stage(source, layers, path))


def check_splittable(source: GgufFile) -> None:
    if source.architecture not in ARCHITECTURES:
        raise BadModel(f"expected an architecture that can be split ({', '.join(ARCHITECTURES)}), came"
                       f" {source.architecture} in {source.path}: run the whole model as one stage")
    if EMBEDDING not in source.tensors:
        raise BadModel(f"expected a tensor {EMBEDDING} in {source.path}, came none: download it again")
    blocks = tensors_by_block(source)
    everything = set().union(*blocks)
    for number, block in enumerate(blocks):
        for missing in sorted(everything - block):
            raise BadModel(f"expected a tensor blk.{number}.{missing} in {source.path}, as in other blocks, came none:"
                           " download it again")


def tensors_by_block(source: GgufFile) -> list[set[str]]:
    """The names of each block's tensors, without the block's own prefix."""
    blocks: list[set[str]] = [set() for _ in range(source.count("block_count"))]
    for name in source.tensors:
        match = BLOCK.fullmatch(name)
        if match and int(match[1]) < len(blocks):
            blocks[int(match[1])].add(match[2])
    return blocks


def fingerprint(source: GgufFile) -> str:
    """Tells models apart: a hash over the header, the file's size and date, and the first 4 KiB of every tensor.

    A hash of all bytes would read tens of gigabytes whenever a rank starts. Two models differ in their header, their
    size or most of their tensors; the date is for the one that was edited in place, the samples are for archives that
    give every file the same date.
    """
    status = source.path.stat()
    digest = hashlib.sha256(f"{FORMAT} {status.st_size} {status.st_mtime_ns}".encode())
    digest.update(source.header)
    for tensor in source.tensors.values():
        digest.update(source.data[tensor.start : min(tensor.stop, tensor.start + SAMPLE_BYTES)])
    return digest.hexdigest()[:16]


class Piece(NamedTuple):
    """A tensor of the stage file: its name there, its dimensions, and its bytes [start, stop) of the source."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    stop: int


def write_stage(source: GgufFile, layers: tuple[int, int], path: Path) -> None:
    """Write the stage file of `layers`. Memory use does not grow with the model."""
    is_last = layers[1] == source.count("block_count")
    pieces = list(pieces_of(source, layers, is_last=is_last))
    if is_last and OUTPUT in source.tensors and source.architecture not in NEVER_TIED:
        pieces = tied(pieces)
    fields = dict(fields_of(source, layers, vocabulary=source.tensors[EMBEDDING].shape[1] if is_last else STUB_TOKENS))
    with path.open("wb") as file, source.path.open("rb") as tensors:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(pieces), len(fields)))
        for key, value in fields.items():
            file.write(encoded(key) + value)
        write_infos(file, pieces)
        for piece in pieces:
            pad(file)
            copy(tensors, file, piece)
        pad(file)


def pieces_of(source: GgufFile, layers: tuple[int, int], *, is_last: bool) -> Iterator[Piece]:
    first, stop = layers
    for name, tensor in source.tensors.items():
        match = BLOCK.fullmatch(name)
        if match is not None:
            if first <= int(match[1]) < stop:
                yield Piece(f"blk.{int(match[1]) - first}.{match[2]}", *tensor)
        elif name in BY_TOKEN and not is_last:
            yield stub_of(source, name, tensor)
        else:
            yield Piece(name, *tensor)


def tied(pieces: list[Piece]) -> list[Piece]:
    """The output matrix under the name of the embedding, which llama.cpp takes for both.

    The last of several stages looks no token up, so that it need not hold two matrices of the vocabulary's size.
    """
    kept = [piece for piece in pieces if piece.name != EMBEDDING]
    return [piece._replace(name=EMBEDDING) if piece.name == OUTPUT else piece for piece in kept]


def stub_of(source: GgufFile, name: str, tensor: Tensor) -> Piece:
    """The rows of the first 8 tokens."""
    row = tensor.shape[:-1]
    per_token = row_bytes(source.path, name, row[0] if row else 1, tensor.type)
    return Piece(name, (*row, STUB_TOKENS), tensor.type, tensor.start, tensor.start + STUB_TOKENS * per_token)


def fields_of(source: GgufFile, layers: tuple[int, int], *, vocabulary: int) -> Iterator[tuple[str, bytes]]:
    """Keys with types and values: the source's, for fewer layers, and a vocabulary without words."""
    prefix = f"{source.architecture}."
    changed = {f"{prefix}block_count", f"{prefix}vocab_size", "general.alignment"}
    for key, field in source.fields.items():
        if key in changed or key.startswith(("tokenizer.", "split.")):
            continue
        yield key, sliced(source, field, layers) if is_per_layer(source, key) else source.raw(field)
    yield f"{prefix}block_count", struct.pack("<II", UINT32, layers[1] - layers[0])
    yield f"{prefix}vocab_size", struct.pack("<II", UINT32, vocabulary)
    yield "tokenizer.ggml.model", struct.pack("<I", STRING) + encoded("no_vocab")


def is_per_layer(source: GgufFile, key: str) -> bool:
    """An array of the architecture with one value per layer; those of RoPE go by head dimensions."""
    prefix = f"{source.architecture}."
    if source.fields[key].kind != ARRAY or not key.startswith(prefix) or key.startswith(f"{prefix}rope."):
        return False
    return len(source.value(key)) == source.count("block_count")


def sliced(source: GgufFile, field: Field, layers: tuple[int, int]) -> bytes:
    """Type and value of an array of numbers, for `layers` alone."""
    walk = Walk(source.data, field.start)
    element = walk.number("I")
    values = Walk(source.data, field.start).value(field.kind)[layers[0] : layers[1]]
    return struct.pack(f"<IIQ{len(values)}{code_of(element)}", ARRAY, element, len(values), *values)


def write_infos(file: BinaryIO, pieces: list[Piece]) -> None:
    offset = 0
    for piece in pieces:
        shape = struct.pack(f"<I{len(piece.shape)}Q", len(piece.shape), *piece.shape)
        file.write(encoded(piece.name) + shape + struct.pack("<IQ", piece.type, offset))
        offset = aligned(offset + piece.stop - piece.start)


def copy(source: BinaryIO, target: BinaryIO, piece: Piece) -> None:
    source.seek(piece.start)
    left = piece.stop - piece.start
    while left:
        left -= target.write(source.read(min(left, CHUNK_BYTES)))


def pad(file: BinaryIO) -> None:
    file.write(bytes(aligned(file.tell()) - file.tell()))


def aligned(offset: int) -> int:
    return -(-offset // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def encoded(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
