"""Plain decoding over real pipelines of llama.cpp: three stages beside one, and one beside llama-cpp-python's own loop.

    pytest tests/benchmarks/test_split_speed.py --benchmark-only

Ranks are processes over TCP on this machine, or threads, one compute thread each. The ways generate the same text in
turns, and compared is the median of each round's ratio. What splitting costs is the hops, and that a core computes more
slowly at first when it did something else before: the more, the shorter a stage computes. The floors are for
regressions and lie below what was measured on two virtual cores with stages of 4 ms: three stages did 79 to 88 % of one
over TCP and 87 to 94 % as threads, and one did 90 to 99 % of the library's loop.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")

import llama_cpp

from pipeinfer.cluster.launch import Cluster
from pipeinfer.engine.model_cache import cache_folder
from pipeinfer.plugins import open_strategy
from pipeinfer.results.metrics import tokens_per_second
from pipeinfer_llamacpp import LlamaCppBackend
from pipeinfer_llamacpp.backend import find_model
from pipeinfer_llamacpp.export import exported

PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """'
TOKENS = 96
ROUNDS = 5
CELLS = 512
FLOORS = {"builtin:target": (0.35, 0.5), "builtin:target-100m": (0.75, 0.85)}
"""The least that three stages may do of one, and one of the library's own loop."""

Way = Callable[[], tuple[float, tuple[int, ...]]]
"""Generates once: tokens per second and the tokens."""


def own_loop(target: str, quantisation: str) -> Way:
    """llama-cpp-python's generate, greedy."""
    path = exported(find_model(target), quantisation, cache_folder("llamacpp"))
    library = llama_cpp.Llama(str(path), n_ctx=CELLS, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False)
    prompt = LlamaCppBackend().tokenizer(str(path)).encode(PROMPT)

    def generate() -> tuple[float, tuple[int, ...]]:
        library.reset()
        tokens, when = [], []
        for token in library.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
            tokens.append(token)
            when.append(time.monotonic())
            if len(tokens) == TOKENS:
                break
        return (TOKENS - 1) / (when[-1] - when[0]), tuple(tokens)

    return generate


def pipeline(stack: ExitStack, transport: str, target: str, quantisation: str, stages: int) -> Way:
    cluster = stack.enter_context(
        Cluster(
            transport=transport,
            backend="llamacpp",
            backend_options={"quantisation": quantisation},
            target=target,
            draft=None,
            stages=stages,
            cells=CELLS,
        )
    )
    prompt = cluster.tokenizer.encode(PROMPT)

    def generate() -> tuple[float, tuple[int, ...]]:
        trial = cluster.generate(prompt, open_strategy("iterative", {}), max_tokens=TOKENS, stop_ids=())
        return tokens_per_second(trial) or 0.0, trial.token_ids

    return generate


@pytest.mark.parametrize("transport", ["tcp", "inproc"])
@pytest.mark.parametrize("quantisation", ["f16", "q8_0"])
@pytest.mark.parametrize("target", FLOORS)
def test_stages_beside_one_and_the_librarys_own_loop(
    benchmark: Any, capsys: pytest.CaptureFixture[str], target: str, quantisation: str, transport: str
) -> None:
    with ExitStack() as stack:
        ways = {f"{stages} stages": pipeline(stack, transport, target, quantisation, stages) for stages in (1, 3)}
        ways["own loop"] = own_loop(target, quantisation)
        speeds: dict[str, list[float]] = {way: [] for way in ways}

        def one_of_each() -> None:
            said = set()
            for way, generate in ways.items():
                speed, tokens = generate()
                speeds[way].append(speed)
                said.add(tokens)
            assert len(said) == 1

        one_of_each()
        for way in ways:
            speeds[way].clear()
        benchmark.pedantic(one_of_each, rounds=ROUNDS)
    of_one = median(three / one for three, one in zip(speeds["3 stages"], speeds["1 stages"], strict=True))
    of_own = median(one / own for one, own in zip(speeds["1 stages"], speeds["own loop"], strict=True))
    with capsys.disabled():
        told = ", ".join(f"{way} {median(values):.1f}" for way, values in speeds.items())
        ratios = f"3 of 1 {of_one:.1%}, 1 of the library's own {of_own:.1%}"
        print(f"\n{target} {quantisation} {transport}: tokens/s {told}; {ratios}")
    least_of_one, least_of_own = FLOORS[target]
    assert of_one >= least_of_one
    assert of_own >= least_of_own
