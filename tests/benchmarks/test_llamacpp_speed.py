"""What a llama.cpp stage costs beside llama-cpp-python's own loop, and three stages beside one, on a model of 100M.

    pytest tests/benchmarks/test_llamacpp_speed.py --benchmark-only -s

The ways generate the same text in turns, a token each, so that what else the machine does falls on all of them.
Compared are the lower quartiles of processor time per token;
seconds are printed as well.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from time import perf_counter, process_time
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")

import llama_cpp

from pipeinfer.engine.backend import Batch
from pipeinfer.testing import write_llama
from pipeinfer.testing.backends import chain, never
from pipeinfer_llamacpp import LlamaCppBackend
from pipeinfer_llamacpp.export import export_gguf

LAYERS, CELLS = 12, 512
PROMPT = tuple(range(16))
TOKENS, WARMUP = 400, 8

Tokens = Iterator[int]


@pytest.fixture(scope="session", params=["f16", "q8_0"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """97M parameters: 12 layers of width 768 and a vocabulary of 16,000, embeddings tied."""
    folder = tmp_path_factory.mktemp("model")
    write_llama(
        folder, layers=LAYERS, hidden=768, heads=12, kv_heads=12, ffn=2048, vocab=16_000, tied=True
    )  # fmt: skip
    path = folder / f"{request.param}.gguf"
    export_gguf(folder, path, request.param)
    return path


def own_loop(model: Path) -> Callable[[], Tokens]:
    """llama-cpp-python's generate, greedy."""
    library = llama_cpp.Llama(str(model), n_ctx=CELLS, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False)

    def generate() -> Tokens:
        library.reset()
        return library.generate(list(PROMPT), temp=0.0, top_k=1, repeat_penalty=1.0)

    return generate


def stages(model: Path, count: int) -> Callable[[], Tokens]:
    """Stages one after another in this process, greedy."""
    backend = LlamaCppBackend(cache=str(model.parent))
    borders = [stage * LAYERS // count for stage in range(count + 1)]
    opened = [backend.load(str(model), share, cells=CELLS, sequences=8) for share in pairwise(borders)]

    def forward(batch: Batch) -> int:
        arrived = None
        for stage in opened:
            arrived = stage.forward(batch, arrived, never)
        assert arrived is not None
        return int(arrived[-1].argmax())

    def generate() -> Tokens:
        for stage in opened:
            stage.clear()
        token = forward(chain(PROMPT, outputs=1))
        for position in range(len(PROMPT), CELLS):
            yield token
            token = forward(Batch((token,), (position,), ((0,),), 1))

    return generate


def test_stages_beside_the_librarys_own_loop(benchmark: Any, model: Path) -> None:
    ways = {"own loop": own_loop(model), "1 stage": stages(model, 1), "3 stages": stages(model, 3)}
    texts = {way: generate() for way, generate in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    spent: dict[str, list[float]] = {way: [] for way in ways}

    def one_token_each() -> None:
        said = set()
        for way, text in texts.items():
            start, start_spent = perf_counter(), process_time()
            said.add(next(text))
            spent[way].append(process_time() - start_spent)
            seconds[way].append(perf_counter() - start)
        assert len(said) == 1

    benchmark.pedantic(one_token_each, rounds=TOKENS, warmup_rounds=WARMUP)
    print()
    for way in ways:
        print(f"{model.stem:5} {way:9} {1e3 * typical(spent[way]):6.2f} ms of a processor per token,"
              f" {1e3 * typical(seconds[way]):6.2f} ms in all")  # fmt: skip
    of_own = typical(spent["own loop"]) / typical(spent["1 stage"])
    of_one = typical(spent["1 stage"]) / typical(spent["3 stages"])
    benchmark.extra_info.update({"one_of_own": of_own, "three_of_one": of_one})
    print(f"{model.stem:5} 1 stage does {of_own:.1%} of the own loop, 3 stages {of_one:.1%} of 1")
    assert of_own >= 0.95
    assert of_one >= 0.90


def typical(times: list[float]) -> float:
    """The lower quartile: other processes only ever add."""
    return quantiles(times[WARMUP:], n=4)[0]
