"""Which stages can be cut out of a model is found out: a stage file is kept when it computes what the whole model does.

llama.cpp has some 150 architectures, and each may do something by a layer's number, or to what enters the first layer.
So a stage computes a few rows, once when it is cut, and the whole model computes them as well, on the same library: the
numbers have to be the same. At which node hidden states enter is found in the same way: the first stage's rows where
llama.cpp has looked up tokens, those of others behind what an architecture does to them (Gemma scales, GPT-2 adds
positions, BLOOM norms).

The whole model is read from its file as the computation goes along and need not fit into memory; sliding windows are
made short meanwhile, so that few rows see what lies beyond them.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipeinfer.engine.backend import BadModel, Batch, Hidden, chain
from pipeinfer.engine.model_cache import made_once
from pipeinfer_llamacpp.abort_guard import NativeAbort, guarded
from pipeinfer_llamacpp.cut import EMBEDDING, count_layers, fingerprint, without_vocabulary, write_stage
from pipeinfer_llamacpp.embedding import EmbeddingRows
from pipeinfer_llamacpp.gguf_file import GgufFile
from pipeinfer_llamacpp.hidden import HiddenStates, NodeNames
from pipeinfer_llamacpp.library import everything_said
from pipeinfer_llamacpp.model import WINDOW, LoadedModel
from pipeinfer_llamacpp.stage import LlamaCppStage

STAGE, FOUND = "stage.gguf", "found.json"
ROWS = ((0, 8), (8, 9), (9, 12))
"""Positions of the batches: a prompt, a single row, and a few."""

CELLS = 32
SHORT_WINDOW = 4
CANDIDATES = 8
"""How many nodes before the first layer are tried."""

CACHE_OF_WINDOWS = re.compile(r"creating +SWA KV cache")
LAYER = re.compile(r"layer +(\d+): (filtered|dev)")
"""What llama.cpp logs of a context for a model with sliding windows: two caches, and which layers each has."""


def whole_stage(source: GgufFile, open_stage: Callable[[], LlamaCppStage]) -> LlamaCppStage:
    """The stage of all layers, which has computed a row. Raises BadModel where it cannot."""

    def tried() -> LlamaCppStage:
        stage = open_stage()
        stage.forward(chain([0], 0, 1), None, lambda: False)
        stage.clear()
        return stage

    try:
        return guarded(tried)
    except NativeAbort as fault:
        raise BadModel(f"expected a model that llama.cpp computes in {source.path}, came {fault}"
                       f" ({source.architecture}): download it again or update llama-cpp-python") from None


class CutPoint(msgspec.Struct, frozen=True):
    """The node at which rows enter a stage, or why it cannot be cut."""

    entry: str = ""
    refused: str = ""


class Cut(NamedTuple):
    """A stage file, and the node at which rows enter."""

    path: Path
    entry: str


def cut_stage(source: GgufFile, layers: tuple[int, int], folder: Path, *, threads: int = 1) -> Cut:
    """The stage file of `layers`, cut and tried now or before. Raises BadModel, also when it computes otherwise."""
    if EMBEDDING not in source.tensors:
        raise BadModel(f"expected a tensor {EMBEDDING} in {source.path}, came none: download it again")
    first, stop = layers
    name = f"{source.path.stem}-{fingerprint(source)}-{first}-{stop}"
    kept = made_once(folder / name, partial(cut_and_try, source, layers, threads=threads))
    found = msgspec.json.decode((kept / FOUND).read_bytes(), type=CutPoint)
    if found.refused:
        raise BadModel(f"expected layers [{first}, {stop}) of {source.path} to compute by themselves what they compute"
                       f" in the whole model, came {found.refused} ({source.architecture}): cut elsewhere, or run the"
                       " model as one stage")
    return Cut(kept / STAGE, found.entry)


def cut_and_try(source: GgufFile, layers: tuple[int, int], folder: Path, *, threads: int) -> None:
    """Write what `cut_stage` keeps: the stage file, unless it is refused, and what was found. Raises BadModel where the
    whole model does not load."""
    folder.mkdir()
    try:
        found = guarded(partial(cut_point, source, layers, folder / STAGE, threads=threads))
    except NativeAbort as fault:
        found = CutPoint(refused=f"a stage that does not run: {fault}")
    if found.refused:
        (folder / STAGE).unlink(missing_ok=True)
    (folder / FOUND).write_bytes(msgspec.json.encode(found))


def cut_point(source: GgufFile, layers: tuple[int, int], path: Path, *, threads: int) -> CutPoint:
    """What there is to know of the stage of `layers`, which is written to `path`."""
    with ProbedModel(source, threads) as trial:
        write_stage(source, layers, path, trial.windowed)
        try:
            return trial.find(layers, path)
        except (BadModel, RuntimeError, ValueError) as error:
            return CutPoint(refused=f"a stage that does not run: {error}")


class ProbedModel:
    """The whole model, and what its layers give for a few rows."""

    def __init__(self, source: GgufFile, threads: int) -> None:
        self._source = source
        self._threads = threads
        self._layers = count_layers(source)
        self._vocabulary = source.tensors[EMBEDDING].shape[1]
        key = f"{source.architecture}.{WINDOW}"
        window = source.value(key, 0)
        self._settings = {key: SHORT_WINDOW} if isinstance(window, int) and window > SHORT_WINDOW else {}
        self._whole = self._load(source.path, without_vocabulary(source))
        self._whole.check_memory()
        with everything_said() as lines, self._opened(self._whole, **WHOLE):
            self.windowed = windows_in(lines, self._layers)

    def __enter__(self) -> "ProbedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._whole.close()

    def find(self, layers: tuple[int, int], path: Path) -> CutPoint:
        """How the stage file at `path` has to be fed to give what `layers` give in the whole model."""
        first, stop = layers
        entering = self._leaving_whole(first) if first else None
        expected = self._leaving_whole(stop)
        if not all(np.isfinite(rows).all() for rows in expected):
            return CutPoint(refused="numbers that are not finite")
        model = self._load(path, {})
        try:
            for entry in self._nodes_before_layers(model, layers, entering):
                with self._opened(model, **ports_of(self._source, layers, entry)) as stage:
                    if same(self._run(stage, entering), expected):
                        return CutPoint(entry=entry)
        finally:
            model.close()
        return CutPoint(refused="other numbers")

    def _nodes_before_layers(
        self, model: LoadedModel, layers: tuple[int, int], entering: list[Hidden] | None
    ) -> list[str]:
        names = NodeNames()
        with self._opened(model, **ports_of(self._source, layers, "") | {"hidden": names}) as stage:
            self._run(stage, entering)
        return names.names[:CANDIDATES]

    def _leaving_whole(self, stop: int) -> list[Hidden]:
        """What leaves the first `stop` layers for each batch: hidden states, or logits behind the last."""
        hidden = HiddenStates(None, exit_of(stop)) if stop < self._layers else None
        with self._opened(self._whole, takes_tokens=True, gives_hidden=hidden is not None, hidden=hidden) as stage:
            return self._run(stage, None)

    def _load(self, path: Path, settings: dict[str, int | str]) -> LoadedModel:
        return LoadedModel(path, as_stored=True, settings={**self._settings, **settings})

    @contextmanager
    def _opened(self, model: LoadedModel, **ports: Any) -> Iterator[LlamaCppStage]:
        stage = LlamaCppStage(model, vocabulary=self._vocabulary, cells=CELLS, sequences=1, threads=self._threads,
                              kv_type="f16", flash=True, **ports)  # fmt: skip
        try:
            yield stage
        finally:
            stage.release()

    def _run(self, stage: LlamaCppStage, entering: list[Hidden] | None) -> list[Hidden]:
        leaving = []
        for number, (start, stop) in enumerate(ROWS):
            tokens = [(7919 * position + 2) % self._vocabulary for position in range(start, stop)]
            batch = Batch(tokens, range(start, stop), [(0,)] * len(tokens), len(tokens))
            rows = stage.forward(batch, None if entering is None else entering[number], lambda: False)
            assert rows is not None
            leaving.append(rows)
        return leaving


WHOLE: dict[str, Any] = {"takes_tokens": True, "gives_hidden": False}
"""The ports of a whole model."""


def ports_of(source: GgufFile, layers: tuple[int, int], entry: str) -> dict[str, Any]:
    """Where rows enter and leave a stage of `layers`, as LlamaCppStage takes it."""
    first, stop = layers
    exit = exit_of(stop - first) if stop < count_layers(source) else None
    return {
        "takes_tokens": first == 0,
        "embedding": EmbeddingRows(source) if first == 0 else None,
        "gives_hidden": exit is not None,
        "hidden": HiddenStates(entry, exit),
    }


def exit_of(layers: int) -> str:
    """The node in which the residual stream leaves the first `layers`."""
    return f"l_out-{layers - 1}"


def same(came: list[Hidden], expected: list[Hidden]) -> bool:
    return all(np.array_equal(rows, others) for rows, others in zip(came, expected, strict=True))


def windows_in(lines: list[str], layers: int) -> list[bool]:
    """Which layers see a window only, by what llama.cpp has logged of a context; empty where none does."""
    windowed: list[bool] = []
    is_of_windows = False
    for line in lines:
        if CACHE_OF_WINDOWS.search(line):
            is_of_windows, windowed = True, [False] * layers
        elif (match := LAYER.search(line)) and is_of_windows and int(match[1]) < layers:
            windowed[int(match[1])] = match[2] == "dev"
    return windowed
