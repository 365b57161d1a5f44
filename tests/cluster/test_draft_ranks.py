"""A draft on ranks of its own: the same tokens, every rank of it at work, and what is not wanted is abandoned there."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.effects import Stop
from pipeinfer.engine.sampling import Sampling
from pipeinfer.plugins import open_strategy
from pipeinfer.results.trial import Trial

PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """'
TOKENS = 64
HOW = {"T=0": Sampling(), "T=0.8": Sampling(temperature=0.8, top_p=0.95, seed=7)}
TREE: dict[str, Any] = {"branches": 3, "split": 0.05}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "speculative chain": ("speculative", {}),
    "speculative tree": ("speculative", {"k": 6, **TREE}),
    "pipeinfer chain": ("pipeinfer", {"cutoff": 0.0}),
    "pipeinfer tree": ("pipeinfer", {"draft": 4, "cutoff": 0.0, **TREE}),
}


def generate(cluster: Cluster, variant: str, how: str = "T=0", **settings: Any) -> Trial:
    name, options = VARIANTS[variant]
    prompt = cluster.tokenizer.encode(PROMPT)
    settings = {"max_tokens": TOKENS, **settings}
    return cluster.generate(prompt, open_strategy(name, options), sampling=HOW[how], stop_ids=(), **settings)


@cache
def iterative(how: str) -> tuple[int, ...]:
    """What one stage says by itself."""
    with Cluster(transport="inproc", stages=1, draft=None) as cluster:
        prompt = cluster.tokenizer.encode(PROMPT)
        strategy = open_strategy("iterative", {})
        return cluster.generate(prompt, strategy, max_tokens=TOKENS, sampling=HOW[how], stop_ids=()).token_ids


@pytest.fixture(scope="module", params=["inproc", "tcp"])
def two(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two stages, and the draft's two layers on two ranks."""
    with Cluster(Plan(transport=request.param, stages=2, draft_layers="1,1")) as cluster:
        yield cluster


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tokens_are_the_same(two: Cluster, variant: str, how: str) -> None:
    trial = generate(two, variant, how)
    assert trial.token_ids == iterative(how)
    assert [(rank.role, rank.layers) for rank in trial.ranks][2:] == [("draft", (0, 1)), ("draft", (1, 2))]
    assert all(rank.busy_s > 0 for rank in trial.ranks)
    if variant.startswith("speculative"):  # which waits for the draft, however busy this machine is
        assert sum(run.accepted for run in trial.runs) > TOKENS / 4


def test_a_generation_that_stopped_early_is_nothing_to_the_next(two: Cluster) -> None:
    for variant in [*VARIANTS, *VARIANTS]:
        stopped = generate(two, variant, max_tokens=1000, on_tokens=lambda _: Stop(1, "stop"))
        assert stopped.token_ids == iterative("T=0")[:1]
        assert generate(two, variant, max_tokens=12).token_ids == iterative("T=0")[:12]


def test_it_drafts_what_it_drafts_on_one_rank() -> None:
    """A strategy in lock-step submits the same rows and has the same accepted, wherever the draft's layers lie."""
    runs = []
    for split in (None, "1,1"):
        with Cluster(Plan(transport="inproc", stages=1, draft_layers=split)) as cluster:
            trial = generate(cluster, "speculative tree", "T=0.8")
            runs.append([(run.kind, run.rows, run.accepted) for run in trial.runs])
    assert runs[0] == runs[1]


def test_a_prompt_in_several_pieces_and_a_rank_in_the_middle() -> None:
    """Three ranks of draft, which is the target: more of it has to be right, and the prompt is longer than a feed."""
    with Cluster(Plan(transport="inproc", stages=2, draft="builtin:target", draft_layers="2,4,2")) as cluster:
        prompt = cluster.tokenizer.encode(PROMPT) * 20
        assert len(prompt) > 256
        said = [
            cluster.generate(prompt, open_strategy(name, options), max_tokens=24, stop_ids=())
            for name, options in [("iterative", {}), ("speculative", {"k": 4}), VARIANTS["pipeinfer tree"]]
        ]
    assert len({trial.token_ids for trial in said}) == 1
    accepted, drafted = (sum(getattr(run, name) for run in said[1].runs) for name in ("accepted", "drafted"))
    assert accepted > 0.8 * drafted, "the target agrees with itself, but for what lies behind the end"


def test_a_draft_that_is_not_wanted_is_abandoned_on_the_rank_behind() -> None:
    """Acceptance 0: 40 ms after each commit there is a draft, another 20 ms later the rank behind goes on from it, and
    the next commit, 10 ms after that, makes it useless."""
    options = {"layers": 2, "layer_s": 0.035, "draft_layers": 2, "draft_s": 0.04, "acceptance": 0.0}
    plan = Plan(
        backend="emulated", backend_options=options, stages=2, draft_layers="1,1", transport="inproc", trace=True
    )
    with Cluster(plan) as cluster:
        cluster.generate([1, 2], open_strategy("pipeinfer", {"cutoff": 0.0}), max_tokens=24)
        behind = [span for span in cluster.spans if span.rank == 3]
    assert {span.name for span in behind} == {"draft"}
    abandoned = [span.end - span.start for span in behind if span.aborted]
    assert len(abandoned) > 3
    assert min(abandoned) < 0.02, "which a whole one takes"
