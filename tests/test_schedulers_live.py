"""Every scheduler that can run really does, on ranks of threads, and gives the tokens of plain decoding."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.plugins import open_strategy
from pipeinfer.results.trial import Trial

TOKENS = 96
"""Enough for drafts to be sent also where ranks are threads that get their turn late."""
REPETITIVE = "for x in range(10):\n    print(x)\n" * 2
SCHEDULERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "async-chain": ("async-chain", {}, None),
    "pearl": ("pearl", {}, None),
    "pearl, rounds of 3": ("pearl", {"gamma": 3}, None),
    "specpipe": ("specpipe", {}, None),
    "swiftspec": ("swiftspec", {}, None),
    "flowspec": ("flowspec", {}, None),
    "ssd": ("ssd", {"k": 4}, None),
    "pipeinfer, outcomes": ("pipeinfer", {}, "outcomes"),
    "pipeinfer, ngram": ("pipeinfer", {}, "ngram"),
    "speculative, ngram": ("speculative", {}, "ngram"),
}


@pytest.fixture(scope="module", params=["numpy", "emulated"])
def ranks(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, Trial]]:
    """Two stages and a draft rank, and what they say in plain decoding."""
    options = {"layer_s": 0.0003} if request.param == "emulated" else {}
    with Cluster(Plan(transport="inproc", stages=2, backend=request.param, backend_options=options)) as made:
        yield made, generate(made, "iterative", {}, None)


def generate(cluster: Cluster, strategy: str, options: dict[str, Any], drafting: str | None) -> Trial:
    prompt = cluster.tokenizer.encode(REPETITIVE)
    return cluster.generate(prompt, open_strategy(strategy, options), max_tokens=TOKENS, stop_ids=(), drafting=drafting)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_tokens_are_those_of_plain_decoding(ranks: tuple[Cluster, Trial], name: str) -> None:
    cluster, plain = ranks
    trial = generate(cluster, *SCHEDULERS[name])
    assert trial.strategy == SCHEDULERS[name][0]
    assert trial.token_ids == plain.token_ids
    # What the emulated backend says never repeats itself, and pearl sends no drafts where rows seem dear, as they do on
    # busy cores.
    may_send_none = name == "pearl" or (trial.fidelity == "emulated" and "ngram" in name)
    assert any(run.drafted for run in trial.runs) or may_send_none


@pytest.mark.parametrize("strategy", ["pipeinfer", "speculative"])
def test_drafting_from_the_text_needs_no_draft_rank(strategy: str) -> None:
    with Cluster(Plan(transport="inproc", stages=2, draft=None)) as alone:
        plain, trial = generate(alone, "iterative", {}, None), generate(alone, strategy, {}, "ngram")
    assert trial.token_ids == plain.token_ids
    assert [rank.role for rank in trial.ranks] == ["target", "target"]
    assert sum(run.accepted for run in trial.runs) > TOKENS / 4
