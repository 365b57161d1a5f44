"""The plug-in itself: from a model's name to its description, a stage or a tokenizer."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pipeinfer.engine.backend import BadModel, ModelInfo, Tokenizer, check_layers
from pipeinfer.engine.huggingface.checkpoint import Checkpoint
from pipeinfer.engine.huggingface.folder import BUILTIN, builtin_folder
from pipeinfer.engine.huggingface.generation_config import end_tokens
from pipeinfer.engine.huggingface.tokenizer import open_tokenizer
from pipeinfer.engine.model_cache import cache_folder, expanded
from pipeinfer_llamacpp.cut import EMBEDDING, OUTPUT, count_layers, without_vocabulary
from pipeinfer_llamacpp.export import ALL_ENDS, ENDS, QUANTISATIONS, exported
from pipeinfer_llamacpp.gguf_file import GgufFile, opened, type_name
from pipeinfer_llamacpp.library import F16, F32
from pipeinfer_llamacpp.model import KV_TYPES, LoadedModel
from pipeinfer_llamacpp.probe import WHOLE, cut_stage, ports_of, whole_stage
from pipeinfer_llamacpp.stage import LlamaCppStage
from pipeinfer_llamacpp.tokenizer import GgufTokenizer, tokenizer_of, vocabulary_digest
from pipeinfer_llamacpp.trials import KINDS, REINSTALL, write_quantised
from pipeinfer_numpy.config import read_config

# The libraries themselves are loaded with the first model; without them the plug-in says at once what is missing.
for library in ("llama_cpp", "gguf"):
    if find_spec(library) is None:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

KV_SIZES = {"f16": 2, "f32": 4}
"""Bytes per number of what is stored in a cell."""

SMOOTH = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe")
"""Architectures that are float32 throughout. Falcon and others have GELU, which ggml looks up in a table of float16."""

LONG_FACTORS = "rope_factors_long.weight"
"""Models that have it turn RoPE by one set of factors or another, as the context has few or many cells."""

SEQUENCES = 256
"""How many sequence ids llama.cpp has at most."""


class LlamaCppBackend:
    """GGUF models through llama.cpp, and Llama models in Hugging Face folders, exported to GGUF when first used.

    Options: `threads` per stage; `gpu_layers`, how many of a stage's layers a GPU computes; `kv_type`, "f16" as
    llama.cpp has it or "f32", with which a row's logits depend least on the rows it is computed with; `flash`, false
    for attention without the flash kernels that llama.cpp takes, with float16 cells, wherever it can; `quantisation` of
    models that are exported, among them the built-in pair; `cache`, a folder for exported models and stage files.
    """

    REINSTALL = REINSTALL

    def __init__(
        self,
        *,
        threads: int = 1,
        gpu_layers: int = 0,
        kv_type: str = "f16",
        flash: bool = True,
        quantisation: str = "f16",
        cache: str | None = None,
    ) -> None:
        if threads < 1 or gpu_layers < 0:
            raise ValueError(f"expected threads from 1 and gpu_layers from 0 on, came {threads} and {gpu_layers}")
        if kv_type not in KV_TYPES:
            raise ValueError(f"expected kv_type {' or '.join(KV_TYPES)}, came {kv_type!r}")
        if quantisation not in QUANTISATIONS:
            raise ValueError(f"expected quantisation {', '.join(QUANTISATIONS)}, came {quantisation!r}")
        self._threads = threads
        self._gpu_layers = gpu_layers
        self._kv_type = kv_type
        self._flash = flash
        self._quantisation = quantisation
        self._cache = cache_folder("llamacpp", cache)

    def info(self, model: str) -> ModelInfo:
        path = find_model(model)
        source = self._open(path)
        conventions = of_folder(path) if path.is_dir() else of_file(source)
        blocks = bytes_by_block(source)
        others = {name: tensor for name, tensor in source.tensors.items() if not name.startswith("blk.")}
        if OUTPUT in others:
            others.pop(EMBEDDING, None)  # the first stage reads rows of it from the file
        return ModelInfo(
            architecture=source.architecture,
            layers=len(blocks),
            hidden_size=source.count("embedding_length"),
            vocabulary=source.length("tokenizer.ggml.tokens"),
            vocabulary_digest=conventions.digest,
            context=source.count("context_length"),
            layer_bytes=max(blocks),
            head_bytes=sum(tensor.stop - tensor.start for tensor in others.values()),
            eos=conventions.ends,
            precision=self._precision(source),
            kv_bytes=self._kv_bytes(source),
            notes=conventions.notes,
        )

    def load(self, model: str, layers: tuple[int, int], *, cells: int, sequences: int) -> LlamaCppStage:
        if cells < 1 or not 1 <= sequences <= SEQUENCES:
            raise ValueError(f"expected at least 1 cell and 1 to {SEQUENCES} sequences, came {cells} and {sequences}")
        source = self._open(find_model(model))
        count = count_layers(source)
        check_layers(layers, count, model)
        if layers == (0, count):
            return whole_stage(source, partial(self._open_stage, source, source.path, WHOLE, cells, sequences))
        path, entry = cut_stage(source, layers, self._cache, threads=self._threads)
        return self._open_stage(source, path, ports_of(source, layers, entry), cells, sequences)

    def _open_stage(
        self, source: GgufFile, path: Path, ports: dict[str, Any], cells: int, sequences: int
    ) -> LlamaCppStage:  # fmt: skip
        settings = without_vocabulary(source) if path == source.path else None
        loaded = LoadedModel(path, self._gpu_layers, settings=settings)
        loaded.check_memory()
        return LlamaCppStage(
            loaded,
            **ports,
            vocabulary=source.tensors[EMBEDDING].shape[1],
            cells=cells,
            sequences=sequences,
            threads=self._threads,
            kv_type=self._kv_type,
            flash=self._flash and self._kv_type == "f16",
            fixed_cells=LONG_FACTORS in source.tensors,
        )

    def weight_files(self, model: str) -> list[Path]:
        """Of a folder those that it is exported from: what a host made of them lies in its own cache."""
        path = find_model(model)
        return Checkpoint(path).present() if path.is_dir() else [shard.path for shard in opened(path).shards]

    def trials(self, folder: Path) -> dict[str, Callable[[], tuple["LlamaCppBackend", str]]]:
        """For `pipeinfer doctor`: the Llama model in `folder` in each common quantisation."""

        def of_kind(kind: str) -> tuple[LlamaCppBackend, str]:
            return self, write_quantised(folder, kind)

        return {kind: partial(of_kind, kind) for kind in KINDS}

    def tokenizer(self, model: str) -> Tokenizer:
        path = find_model(model)
        return open_tokenizer(path) if path.is_dir() else tokenizer_of(opened(path))

    def _precision(self, source: GgufFile) -> str:
        stored = precision_of_weights(source)
        if stored != "float32":
            return stored
        if self._kv_type == "f16" or source.architecture not in SMOOTH:
            return "float16"
        return "tf32" if self._gpu_layers else "float32"

    def _kv_bytes(self, source: GgufFile) -> int:
        """Of one layer's keys and values for one cell; 0 where layers differ."""
        prefix = f"{source.architecture}.attention."
        heads = source.value(f"{prefix}head_count")
        kv_heads = source.value(f"{prefix}head_count_kv", heads)
        if not isinstance(heads, int) or not isinstance(kv_heads, int):
            return 0
        width = source.count("embedding_length") // heads
        width = source.value(f"{prefix}key_length", width) + source.value(f"{prefix}value_length", width)
        return kv_heads * int(width) * KV_SIZES[self._kv_type]

    def _open(self, path: Path) -> GgufFile:
        return opened(exported(path, self._quantisation, self._cache) if path.is_dir() else path)


def find_model(model: str) -> Path:
    """The GGUF file or Hugging Face folder that `model` names. Raises BadModel."""
    if model.startswith("builtin:"):
        return builtin_folder(model)
    path = expanded(model)
    if not path.exists():
        raise BadModel(f"expected a GGUF file, a model folder or one of {', '.join(BUILTIN)}, came {model!r}, which is"
                       " none of them: give the path of a .gguf file")
    return path


def bytes_by_block(source: GgufFile) -> list[int]:
    """Bytes of each layer's tensors."""
    count = count_layers(source)
    return [
        sum(tensor.stop - tensor.start for name, tensor in source.tensors.items() if name.startswith(f"blk.{block}."))
        for block in range(count)
    ]


def precision_of_weights(source: GgufFile) -> str:
    """The coarsest type of a matrix, of several the one of most bytes: llama.cpp rounds what it is multiplied with to
    as many bits."""
    bytes_by_type: Counter[int] = Counter({F32: 0})
    for tensor in source.tensors.values():
        if len(tensor.shape) > 1:
            bytes_by_type[tensor.type] += tensor.stop - tensor.start
    coarsest = max(bytes_by_type, key=lambda kind: (kind != F32, kind not in (F32, F16), bytes_by_type[kind]))
    return {F32: "float32", F16: "float16"}.get(coarsest) or type_name(coarsest)


class Conventions(NamedTuple):
    """Of a model's vocabulary: its digest, the tokens that end a generation, what is wrong with it."""

    digest: str
    ends: tuple[int, ...]
    notes: tuple[str, ...]


def of_folder(folder: Path) -> Conventions:
    """What every backend takes from the folder. Raises BadModel."""
    ends = end_tokens(folder, read_config(folder).eos_token_id)
    return Conventions(open_tokenizer(folder).digest(), ends, ())


def of_file(source: GgufFile) -> Conventions:
    """What llama.cpp itself makes of the file, now or before: a large vocabulary takes a second. Raises BadModel."""
    status = source.path.stat()
    return _of_file(source.path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _of_file(path: Path, _size: int, _changed: int) -> Conventions:
    source = opened(path)
    tokenizer = tokenizer_of(source)
    return Conventions(vocabulary_digest(source), ends_of(source, tokenizer), tokenizer.warnings)


def ends_of(source: GgufFile, tokenizer: GgufTokenizer) -> tuple[int, ...]:
    """The tokens that end a generation: those that the file names, and what llama.cpp takes for such by their text."""
    named = [source.value(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
    known = [end for end in named if end is not None]
    return tuple(dict.fromkeys((*known, *source.value(ALL_ENDS, []), *tokenizer.ends())))
