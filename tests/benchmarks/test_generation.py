"""Tokens per second of live generations, PipeInfer beside plain decoding, in turns and with the ratio of each turn.

    pytest tests/benchmarks/test_generation.py --benchmark-only

The emulated pipeline has stages of 8 ms, so its figures are those of scheduler, transport and processes; the NumPy
backend runs the built-in pair. One round is one generation of each strategy.
"""

from statistics import median
from typing import Any

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.plugins import open_strategy
from pipeinfer.results import metrics
from pipeinfer.results.analysis import interval

STRATEGIES = ("iterative", "pipeinfer")
TOKENS = 32
ROUNDS = 10
PLANS: dict[str, dict[str, Any]] = {
    "emulated": {"backend": "emulated", "backend_options": {"layers": 24, "acceptance": 0.79}},
    "numpy": {"backend": "numpy"},
}


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
@pytest.mark.parametrize("backend", PLANS)
def test_tokens_per_second(benchmark: Any, capsys: pytest.CaptureFixture[str], backend: str, transport: str) -> None:
    with Cluster(stages=3, transport=transport, **PLANS[backend]) as cluster:
        prompt = cluster.tokenizer.encode("def read_lines(path, encoding=None):")
        speeds: list[list[float]] = []

        def turn() -> None:
            trials = [
                cluster.generate(prompt, open_strategy(name, {}), max_tokens=TOKENS, stop_ids=()) for name in STRATEGIES
            ]
            assert len({trial.token_ids for trial in trials}) == 1
            speeds.append([metrics.tokens_per_second(trial) or 0.0 for trial in trials])

        benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    report = "  ".join(
        f"{name} {_band(list(values))}" for name, values in zip(STRATEGIES, zip(*speeds, strict=True), strict=True)
    )
    ratio = _band([pipeinfer / iterative for iterative, pipeinfer in speeds])
    benchmark.extra_info.update(tokens_per_second=report, ratio=ratio)
    with capsys.disabled():
        print(f"\n{backend}, {transport}: {report}  ratio per turn {ratio}")


def _band(values: list[float]) -> str:
    low, high = interval(values)
    return f"{median(values):.2f} ({low:.2f} to {high:.2f})"
