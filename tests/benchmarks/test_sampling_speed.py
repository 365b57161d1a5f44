"""What choosing a token costs the last stage, and finding candidates the drafter, by the size of the vocabulary.

    pytest tests/benchmarks/test_sampling_speed.py --benchmark-only

Logits fall off with a token's rank as those of language models do, so that a nucleus is a small part of the vocabulary.
"""

from typing import Any

import numpy as np
import pytest

from pipeinfer.engine.sampling import Sampling, candidates, sample

WAYS = {
    "greedy": Sampling(),
    "warm": Sampling(0.8, seed=1),
    "top-p": Sampling(0.8, 0, 0.95, 1),
    "top-k and top-p": Sampling(0.8, 40, 0.95, 1),
}


def logits(vocabulary: int) -> Any:
    random = np.random.default_rng(0)
    ranks = random.permutation(vocabulary)
    return (-2.2 * np.log(1 + ranks) + random.standard_normal(vocabulary)).astype(np.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vocabulary", [1024, 32_000, 128_256])
def test_a_token(benchmark: Any, vocabulary: int, way: str) -> None:
    benchmark(sample, logits(vocabulary), 7, WAYS[way])


@pytest.mark.parametrize("vocabulary", [32_000, 128_256])
def test_a_drafts_candidates(benchmark: Any, vocabulary: int) -> None:
    benchmark(candidates, logits(vocabulary), 7, WAYS["top-p"], 2)
