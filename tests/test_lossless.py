"""Whatever schedules them, over whatever links and splits, the token ids are those of a plain loop in one process.

By default a selection in which every variant of a strategy, temperature, transport, split and prompt appears, of a
small pair; with `pytest --full` every combination, of the built-in pair (hours).
"""

import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest
from small_pair import Pair

from pipeinfer.assets import asset
from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.effects import Stop
from pipeinfer.engine.backend import Batch
from pipeinfer.engine.sampling import Sampling, sample
from pipeinfer.plugins import open_backend, open_strategy
from pipeinfer.results.trial import Trial

TOKENS, LONG = 80, 256
"""Of a text, and of one with `--full`: where strategies send runs ahead, more runs than there are sequence ids."""
BUILTIN = Pair("builtin:target", "builtin:draft")
HOW = {"T=0": Sampling(), "T=0.8": Sampling(temperature=0.8, top_p=0.95, seed=7)}
TREE: dict[str, Any] = {"branches": 3, "split": 0.05}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "iterative": ("iterative", {}),
    "speculative chain": ("speculative", {}),
    "speculative tree": ("speculative", {"k": 6, **TREE}),
    "pipeinfer chain": ("pipeinfer", {}),
    "pipeinfer tree": ("pipeinfer", {"draft": 4, **TREE}),
    "pipeinfer with cutoffs": ("pipeinfer", {"cutoff": 0.3, "recovery": 0.02, "decay": 0.01}),
    "redundant runs": ("redundant", {}),
    "redundant runs, tree": ("redundant", {"draft": 4, **TREE}),
    "no cancellation": ("pipeinfer", {"cancellation": False}),
    "one run at a time": ("pipeinfer", {"continuous": False}),
}
CLUSTERS = list(product(("inproc", "tcp"), (1, 2, 3, 4)))


class Case(NamedTuple):
    """One generation of the matrix."""

    transport: str
    stages: int
    variant: str
    how: str
    prompt: int
    tokens: int = TOKENS

    def __str__(self) -> str:
        return f"{self.transport}-{self.stages}-{self.variant}-{self.how}-{self.prompt}"


def full() -> list[Case]:
    return [Case(*cluster, *rest, tokens=LONG) for cluster in CLUSTERS for rest in product(VARIANTS, HOW, range(20))]


def selection() -> list[Case]:
    """Every variant at every temperature, each with a prompt of its own, over every cluster in turn."""
    pairs = list(product(VARIANTS, HOW))
    turns = [(*CLUSTERS[i % 8], *pairs[(7 * i) % 20], i) for i in range(20)]
    return sorted([Case(*turn) for turn in turns], key=lambda case: case[:2])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = full() if metafunc.config.getoption("--full") else selection()
        metafunc.parametrize("case", cases, ids=map(str, cases))


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, small_pair: Pair) -> Pair:
    return BUILTIN if request.config.getoption("--full") else small_pair


class _Opened:
    """The cluster of a pair that was asked for last; consecutive cases share one."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair._asdict()
        self._key: Any = None
        self._cluster: Cluster | None = None

    def get(self, **fields: Any) -> Cluster:
        key = sorted(fields.items())
        if self._cluster is None or key != self._key:
            self.close()
            self._key, self._cluster = key, Cluster(Plan(**{**self._pair, **fields}))
        return self._cluster

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


@pytest.fixture(scope="module")
def opened(pair: Pair) -> Iterator[_Opened]:
    opened = _Opened(pair)
    yield opened
    opened.close()


@cache
def prompts(target: str) -> list[list[int]]:
    with asset("workloads/builtin/prompts.toml").open("rb") as file:
        texts = [prompt["text"] for prompt in tomllib.load(file)["prompt"]]
    return [open_backend("numpy", {}).tokenizer(target).encode(text) for text in texts]


@cache
def plain_loop(target: str, prompt: tuple[int, ...], how: Sampling, count: int) -> list[int]:
    """One process, one sequence, one row at a time. What every pipeline has to say as well."""
    backend = open_backend("numpy", {})
    layers = backend.info(target).layers
    model = backend.load(target, (0, layers), cells=len(prompt) + count, sequences=1)
    text, rows = list(prompt), list(prompt)
    while len(text) < len(prompt) + count:
        batch = Batch(rows, range(len(text) - len(rows), len(text)), [(0,)] * len(rows), 1)
        rows = [sample(model.forward(batch, None, lambda: False)[-1], len(text), how)]
        text += rows
    model.close()
    return text[len(prompt) :]


def generate(cluster: Cluster, variant: str, prompt: Sequence[int], how: str, count: int = TOKENS) -> Trial:
    name, options = VARIANTS[variant]
    return cluster.generate(
        prompt, open_strategy(name, options), max_tokens=count, sampling=HOW[how], stop_ids=()
    )  # fmt: skip


def test_the_selection_leaves_nothing_out(pair: Pair) -> None:
    cases = selection()
    assert {case[:2] for case in cases} == set(CLUSTERS)
    assert {(case.variant, case.how) for case in cases} == set(product(VARIANTS, HOW))
    assert {case.prompt for case in cases} == set(range(20)) == set(range(len(prompts(pair.target))))


@pytest.mark.timeout(60)
def test_the_tokens_are_those_of_the_plain_loop(case: Case, opened: _Opened, pair: Pair) -> None:
    prompt = prompts(pair.target)[case.prompt]
    cluster = opened.get(transport=case.transport, stages=case.stages)
    trial = generate(cluster, case.variant, prompt, case.how, case.tokens)
    assert list(trial.token_ids) == plain_loop(pair.target, tuple(prompt), HOW[case.how], case.tokens)
    assert trial.reason == "length"
    assert len(trial.emit_s) == case.tokens


@pytest.mark.parametrize("variant", ["speculative tree", "pipeinfer chain", "pipeinfer tree", "redundant runs, tree"])
@pytest.mark.parametrize("how", HOW)
def test_a_draft_that_is_always_right_changes_nothing(variant: str, how: str, opened: _Opened, pair: Pair) -> None:
    """The target drafts for itself, so that long chains are accepted whatever the built-in draft is worth."""
    prompt = prompts(pair.target)[10 if how == "T=0" else 11]  # as in the selection, which has their texts
    trial = generate(opened.get(transport="inproc", stages=2, draft=pair.target), variant, prompt, how, 64)
    assert list(trial.token_ids) == plain_loop(pair.target, tuple(prompt), HOW[how], TOKENS)[:64]
    if variant.startswith("speculative"):  # The others are free to outrun a draft that is as slow as the target.
        assert sum(run.accepted for run in trial.runs) > 32


@pytest.mark.parametrize("variant", ["iterative", "speculative tree", "pipeinfer tree", "redundant runs"])
def test_cells_that_run_out_end_the_text(variant: str, opened: _Opened, pair: Pair) -> None:
    prompt = prompts(pair.target)[3]
    cluster = opened.get(transport="inproc", stages=2, cells=len(prompt) + 40, sequences=16)
    trial = generate(cluster, variant, prompt, "T=0.8")
    assert trial.reason == "context"
    assert list(trial.token_ids) == plain_loop(pair.target, tuple(prompt), HOW["T=0.8"], TOKENS)[:40]


def test_trials_follow_one_another_whatever_was_left_of_the_last(opened: _Opened, pair: Pair) -> None:
    """Runs, cells and drafts of a generation that stopped early are nothing to the next one."""
    cluster = opened.get(transport="tcp", stages=2)
    for index, variant in enumerate(["pipeinfer tree", "speculative chain", "pipeinfer chain", "redundant runs"] * 2):
        prompt = prompts(pair.target)[2 * index]  # as in the selection, at the same temperature
        taken: list[int] = []

        def stop_at_ten(tokens: Sequence[int], taken: list[int] = taken) -> Stop | None:
            taken.extend(tokens)
            return Stop(10, "stop") if len(taken) >= 10 else None

        name, options = VARIANTS[variant]
        trial = cluster.generate(
            prompt, open_strategy(name, options), max_tokens=TOKENS, stop_ids=(), on_tokens=stop_at_ten
        )  # fmt: skip
        assert trial.reason == "stop"
        assert list(trial.token_ids) == plain_loop(pair.target, tuple(prompt), HOW["T=0"], TOKENS)[:10]
        assert len(trial.emit_s) == 10
